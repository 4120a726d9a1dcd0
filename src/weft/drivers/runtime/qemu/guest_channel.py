"""Talks to the agent inside one guest: one byte stream, many commands, a window of credit for each direction of each.

Reads and writes the unix socket behind the guest's virtio-serial port. Woken by its bytes. A stream that breaks or
falls out of step ends every session on it; the owner connects again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

from weft.contracts.runtime import ExecChunk, ExecRequest
from weft.drivers.runtime.qemu.frames import (
    NONCE_BYTES,
    PAYLOAD_BYTES,
    REQUEST_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_BYTES,
    Frame,
    FrameReader,
    Hello,
    OutOfStep,
    encode_frame,
    encode_hello,
    encode_request,
)
from weft.objects.errors import InvalidInput, TooLarge, Unavailable

CREDIT_STEP_BYTES = WINDOW_BYTES // 4


class GuestChannel(asyncio.Protocol):
    """One connection to one guest's agent. ``on_hello`` is called whenever the guest has (again) introduced itself,
    ``on_lost`` once when the connection is gone."""

    def __init__(self, on_hello: Callable[[Hello], None], on_lost: Callable[[], None]) -> None:
        self._on_hello = on_hello
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(b"")
        self._sessions: dict[int, GuestSession] = {}
        self._last_session = 0
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def ready(self) -> bool:
        return self._transport is not None and self._reader.hello is not None

    async def exec(self, request: ExecRequest) -> GuestSession:
        """Start a command. Raises Unavailable if the guest doesn't answer, InvalidInput or TooLarge for a bad one."""
        if not self.ready:
            raise Unavailable("the guest's agent doesn't answer yet", retry_after_seconds=0.2)
        self._last_session += 1
        number = self._last_session
        try:
            frames = encode_request(number, request.argv, request.env, request.cwd, tty=request.tty)
        except ValueError as error:
            raise InvalidInput(f"this command can't be run: {error}", field="argv") from None
        if sum(map(len, frames)) > REQUEST_BYTES:
            raise TooLarge(f"arguments and environment are longer than {REQUEST_BYTES >> 20} MiB", field="argv")
        session = GuestSession(self, number)
        self._sessions[number] = session
        for frame in frames:
            self.send(frame)
        return session

    def power(self, *, reboot: bool = False) -> None:
        """Ask the guest to power off, or to reboot; it does so in its own time."""
        self.send(encode_frame("O", payload=b"\2" if reboot else b"\1"))

    def set_time(self, unix_seconds: float) -> None:
        """Set the guest's clock."""
        self.send(encode_frame("T", payload=int(unix_seconds * 1e9).to_bytes(8, "little")))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What sessions use.

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    async def drained(self) -> None:
        """Wait until the socket takes more."""
        await self._may_write.wait()

    def forget(self, number: int) -> None:
        self._sessions.pop(number, None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._introduce()

    def data_received(self, data: bytes) -> None:
        known = self._reader.hello
        try:
            frames = self._reader.feed(data)
        except OutOfStep:
            self._introduce()
            return
        if known is None and self._reader.hello is not None:
            self._on_hello(self._reader.hello)
        for frame in frames:
            if frame.kind == "B":  # a new agent: it knows nothing of us
                self._introduce()
                return
            session = self._sessions.get(frame.session)
            if session is not None:
                session.take(frame)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._may_write.set()
        self._end_sessions()
        self._on_lost()

    def _introduce(self) -> None:
        self._end_sessions()
        nonce = os.urandom(NONCE_BYTES)
        self._reader = FrameReader(nonce)
        self.send(encode_hello(nonce))

    def _end_sessions(self) -> None:
        for session in list(self._sessions.values()):
            session.lose()
        self._sessions.clear()


class GuestSession:
    """One command in the guest, as contracts.runtime.ExecSession wants it."""

    def __init__(self, channel: GuestChannel, number: int) -> None:
        self._channel = channel
        self._number = number
        self._credit = WINDOW_BYTES
        self._has_credit = asyncio.Event()
        self._has_credit.set()
        self._chunks: asyncio.Queue[ExecChunk | None] = asyncio.Queue()  # bounded by the windows we grant
        self._owed = {STDOUT: 0, STDERR: 0}
        self._over = False

    async def write(self, data: bytes) -> None:
        """Send stdin; waits while the guest's window is full. What a command that ended didn't read is dropped."""
        view = memoryview(data)
        while view and not self._over:
            await self._has_credit.wait()
            await self._channel.drained()
            if self._over:
                return
            piece = view[: min(PAYLOAD_BYTES, self._credit)]
            self._credit -= len(piece)
            if self._credit == 0:
                self._has_credit.clear()
            self._channel.send(encode_frame("D", channel=STDIN, session=self._number, payload=bytes(piece)))
            view = view[len(piece) :]

    async def close_stdin(self) -> None:
        if not self._over:
            self._channel.send(encode_frame("C", channel=STDIN, session=self._number))

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size."""
        payload = rows.to_bytes(2, "little") + columns.to_bytes(2, "little")
        self._channel.send(encode_frame("R", session=self._number, payload=payload))

    async def output(self) -> AsyncIterator[ExecChunk]:
        """Chunks in order per channel; ends after ``exit``. Raises Unavailable if the guest was lost before that."""
        while True:
            chunk = await self._chunks.get()
            if chunk is None:
                raise Unavailable("the connection to the guest's agent broke; the command's fate is unknown")
            if chunk.channel == "exit":
                yield chunk
                return
            self._grant(STDOUT if chunk.channel == "stdout" else STDERR, len(chunk.data))
            yield chunk

    async def close(self) -> None:
        """Hang up: the command gets SIGHUP if it still runs."""
        if not self._over:
            self._over = True
            self._has_credit.set()
            self._channel.send(encode_frame("K", session=self._number))
        self._channel.forget(self._number)

    def _grant(self, channel: int, taken: int) -> None:
        self._owed[channel] += taken
        if self._owed[channel] >= CREDIT_STEP_BYTES and not self._over:
            payload = self._owed[channel].to_bytes(4, "little")
            self._channel.send(encode_frame("W", channel=channel, session=self._number, payload=payload))
            self._owed[channel] = 0

    # What the channel calls.

    def take(self, frame: Frame) -> None:
        match frame.kind:
            case "D":
                self._chunks.put_nowait(ExecChunk("stdout" if frame.channel == STDOUT else "stderr", frame.payload))
            case "W":
                self._credit += int.from_bytes(frame.payload, "little")
                if self._credit:
                    self._has_credit.set()
            case "Q":
                number = int.from_bytes(frame.payload, "little")
                ended = ExecChunk("exit", signal=number) if frame.channel else ExecChunk("exit", code=number)
                self._end(ended)

    def lose(self) -> None:
        self._end(None)

    def _end(self, last: ExecChunk | None) -> None:
        if not self._over:
            self._over = True
            self._has_credit.set()
            self._chunks.put_nowait(last)
        self._channel.forget(self._number)
