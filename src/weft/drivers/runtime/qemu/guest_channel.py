"""Talks to the agent inside one guest: one byte stream, many commands, a window of credit for each direction of each.

Reads and writes the unix socket behind the guest's virtio-serial port. Woken by its bytes. A stream that breaks or
falls out of step ends every session on it, as seen from here: the guest keeps those that have a name. The owner
connects again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

from weft.contracts.runtime import (
    DETACHED,
    ExecChunk,
    ExecRequest,
    ProcessFacts,
    SessionMark,
    SessionStanding,
)
from weft.drivers.runtime.qemu.frames import (
    NAME_BYTES,
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
    Standing,
    decode_process,
    decode_standing,
    encode_frame,
    encode_hello,
    encode_name,
    encode_request,
)
from weft.objects.errors import InvalidInput, TooLarge, Unavailable

CREDIT_STEP_BYTES = WINDOW_BYTES // 4
STANDING_SECONDS = 5.0


class GuestChannel(asyncio.Protocol):
    """One connection to one guest's agent. ``on_hello`` is called whenever the guest has (again) introduced itself,
    ``on_lost`` once when the connection is gone, ``on_process`` with what it says of its process."""

    def __init__(
        self,
        on_hello: Callable[[Hello], None],
        on_lost: Callable[[], None],
        on_process: Callable[[ProcessFacts], None] = lambda told: None,
    ) -> None:
        self._on_hello, self._on_lost, self._on_process = on_hello, on_lost, on_process
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
        number = self._next_number()
        frames = _encode(number, request)
        session = self._sessions[number] = GuestSession(self, number)
        for frame in frames:
            self.send(frame)
        return session

    async def exec_kept(self, request: ExecRequest, mark: SessionMark) -> GuestSession:
        """Begin a session with a name, or go on with it. Raises as ``exec``, and Unavailable (``sessionLost``) when the guest
        has it no more."""
        run = self._reader.hello.run_id if self._reader.hello is not None else ""
        if mark.run and self.ready and mark.run != run:
            raise _lost()
        if not run or not self.ready:
            return await self.exec(request)
        number, name = self._next_number(), bytes.fromhex(mark.key)
        if len(name) != NAME_BYTES:
            raise InvalidInput(f"a session's key has {NAME_BYTES * 2} hexadecimal digits", field="session")
        frames = _encode(number, request)
        session = self._sessions[number] = GuestSession(self, number, SessionStanding(run), (mark.stdout, mark.stderr))
        self.send(encode_name(number, name, stdout=mark.stdout, stderr=mark.stderr, resume=bool(mark.run)))
        begin = not mark.run
        if mark.run:
            try:
                begin = await session.find_standing() == "new"
            except BaseException:
                self.forget(number)
                raise
        for frame in frames if begin else []:
            self.send(frame)
        return session

    def _next_number(self) -> int:
        self._last_session += 1
        return self._last_session

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
                self._end_sessions(for_good=True)
                self._introduce()
                return
            if frame.kind == "P" and (told := decode_process(frame)) is not None:
                self._on_process(told)
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

    def _end_sessions(self, *, for_good: bool = False) -> None:
        for session in list(self._sessions.values()):
            session.lose(for_good=for_good)
        self._sessions.clear()


class GuestSession:
    """One command in the guest, as contracts.runtime.ExecSession wants it. With a name (its standing then has a ``run``) it is a
    KeptSession, from whose output so much had ``arrived`` before: output counts as arrived when somebody says so, not when
    it was read here."""

    def __init__(
        self,
        channel: GuestChannel,
        number: int,
        standing: SessionStanding | None = None,
        arrived: tuple[int, int] = (0, 0),
    ) -> None:
        self._channel = channel
        self._number = number
        self.standing = standing or SessionStanding()
        self._answer: asyncio.Future[Standing | None] = asyncio.get_running_loop().create_future()
        self._arrived = {STDOUT: arrived[0], STDERR: arrived[1]}
        self._taken = 0
        self._for_good = self._parted = False
        self._credit = WINDOW_BYTES
        self._has_credit = asyncio.Event()
        self._has_credit.set()
        self._chunks: asyncio.Queue[ExecChunk | None] = asyncio.Queue()  # bounded by the windows we grant
        self._owed = {STDOUT: 0, STDERR: 0}
        self._over = False

    @property
    def is_kept(self) -> bool:
        return bool(self.standing.run)

    async def find_standing(self) -> str:
        """Wait for the guest's word on a session that goes on. Raises Unavailable."""
        try:
            answer = await asyncio.wait_for(self._answer, STANDING_SECONDS)
        except TimeoutError:
            answer = None
        if answer is None:
            raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.2)
        if answer.how == "gone":
            raise _lost()
        self.standing = SessionStanding(self.standing.run, answer.received, answer.taken, answer.ended)
        self._taken = answer.taken
        self._credit -= answer.received - answer.taken
        if self._credit <= 0:
            self._has_credit.clear()
        return answer.how

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
                raise Unavailable(
                    "the connection to the guest's agent broke; the command's fate is unknown",
                    reason=DETACHED if self.is_kept and not self._for_good else "",
                )
            if chunk.channel == "exit":
                yield chunk
                return
            if not self.is_kept and chunk.channel != "taken":
                self._grant(STDOUT if chunk.channel == "stdout" else STDERR, len(chunk.data))
            yield chunk

    def acknowledge(self, stdout: int, stderr: int) -> None:
        for channel, arrived in ((STDOUT, stdout), (STDERR, stderr)):
            if arrived > self._arrived[channel]:
                self._grant(channel, arrived - self._arrived[channel])
                self._arrived[channel] = arrived

    async def let_go(self) -> None:
        """Leave it to whoever comes for it."""
        self._part(1)

    async def close(self) -> None:
        """Hang up: the command gets SIGHUP if it still runs. One that is kept is forgotten only now, though it has ended."""
        self._part(0)

    def _part(self, how: int) -> None:
        if not self._parted and (self.is_kept or not self._over):
            self._parted = self._over = True
            self._has_credit.set()
            self._channel.send(encode_frame("K", channel=how, session=self._number))
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
                taken = int.from_bytes(frame.payload, "little")
                self._credit += taken
                self._taken += taken
                if self._credit > 0:
                    self._has_credit.set()
                if self.is_kept:
                    self._chunks.put_nowait(ExecChunk("taken", taken=self._taken))
            case "N":
                if not self._answer.done():
                    self._answer.set_result(decode_standing(frame))
            case "Q":
                number = int.from_bytes(frame.payload, "little")
                ended = ExecChunk("exit", signal=number) if frame.channel else ExecChunk("exit", code=number)
                self._end(ended)

    def lose(self, *, for_good: bool = False) -> None:
        self._for_good, self._parted = for_good, True
        if not self._answer.done():
            self._answer.set_result(None)
        self._end(None)

    def _end(self, last: ExecChunk | None) -> None:
        if not self._over:
            self._over = True
            self._has_credit.set()
            self._chunks.put_nowait(last)
        self._channel.forget(self._number)


def _encode(number: int, request: ExecRequest) -> list[bytes]:
    try:
        frames = encode_request(number, request.argv, request.env, request.cwd, tty=request.tty)
    except ValueError as error:
        raise InvalidInput(f"this command can't be run: {error}", field="argv") from None
    if sum(map(len, frames)) > REQUEST_BYTES:
        raise TooLarge(f"arguments and environment are longer than {REQUEST_BYTES >> 20} MiB", field="argv")
    return frames


def _lost() -> Unavailable:
    return Unavailable(
        "the guest has this command's session no more; the command's fate is unknown", reason="sessionLost"
    )
