"""Talks to the agent inside one guest: one byte stream, many commands, a window of credit for each direction of each.

Reads and writes the unix socket behind the guest's virtio-serial port. Woken by its bytes. A stream that breaks or
falls out of step ends every session on it, as seen from here: the guest keeps those that have a name. The owner
connects again.

Who is root in the guest sends what he likes, as fast as he can. What a session may not send ends it (``session``); what
nobody asked for is dropped, and the guest is read no faster than that costs little; a guest that takes nothing is hung up on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable

from weft.contracts.driver.runtime import ExecRequest, ProcessFacts, SessionMark, SessionStanding
from weft.drivers.runtime.qemu.guest_agent.frames import (
    NAME_BYTES,
    NONCE_BYTES,
    REQUEST_BYTES,
    Frame,
    FrameReader,
    Hello,
    OutOfStep,
    decode_process,
    encode_frame,
    encode_hello,
    encode_name,
    encode_request,
    encode_size,
)
from weft.drivers.runtime.qemu.guest_agent.question import LEAST_VERSIONS, GuestQuestion
from weft.drivers.runtime.qemu.guest_agent.session import BROKEN, STANDING_SECONDS, GuestSession, session_lost
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.objects.errors import InvalidInput, TooLarge, Unavailable

UNTAKEN_BYTES = 4 * REQUEST_BYTES  # for a guest that doesn't read: more, and it is hung up on
# What a guest sends costs points: a small frame some, one that nobody asked for more, a new beginning far more; a KiB of what is
# no frame one. It is read no faster than it has points, so that it takes no more than a tenth of a core of its node's.
POINTS_PER_SECOND = 20_000
SAVED_POINTS = 1_000
SMALL_BYTES = 1024
SMALL_POINTS = 2
UNASKED_POINTS = 2
BEGINNING_POINTS = 2_000
LONGEST_PAUSE_SECONDS = 5.0


class GuestChannel(asyncio.Protocol):
    """One connection to one guest's agent. ``on_hello`` is called whenever the guest has (again) introduced itself,
    ``on_lost`` once when the connection is gone, ``on_process`` with what it says of its process (None: it is there for none,
    and isn't listened to). ``unread`` counts what waits of all guests together; this one's under ``guest``."""

    def __init__(
        self,
        on_hello: Callable[[Hello], None],
        on_lost: Callable[[], None],
        on_process: Callable[[ProcessFacts], None] | None = None,
        unread: Unread | None = None,
        guest: Hashable = None,
    ) -> None:
        self._on_hello, self._on_lost, self._on_process = on_hello, on_lost, on_process
        self.unread, self.guest = unread or Unread(), guest or self
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(b"")
        self._sessions: dict[int, GuestSession | GuestQuestion] = {}
        self._last_session = 0
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._points, self._counted_at = 0.0, 0.0  # those it owes, as of this second of the loop's
        self._resting: asyncio.TimerHandle | None = None
        self._why_closed = BROKEN

    @property
    def ready(self) -> bool:
        return self._transport is not None and self._reader.hello is not None

    async def ask(self, kind: str, payload: bytes, timeout_seconds: float) -> tuple[bool, int] | None:
        """The guest's answer: whether it did it, and a number; None: its agent is too old for that. Raises Unavailable if
        none comes in time."""
        if self._transport is None or self._reader.hello is None:
            raise Unavailable("the guest's agent doesn't answer yet", retry_after_seconds=0.2)
        if self._reader.hello.version < LEAST_VERSIONS[kind]:
            return None
        question, number = GuestQuestion(kind), self._next_number()
        self._sessions[number] = question
        try:
            self.send(encode_frame(kind, session=number, payload=payload))
            async with asyncio.timeout(timeout_seconds):
                answer = await question.answer
        except TimeoutError:
            answer = None
        finally:
            self.forget(number)
        if answer is None:
            raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.2)
        return answer

    async def exec(self, request: ExecRequest) -> GuestSession:
        """Start a command. Raises Unavailable if the guest doesn't answer, InvalidInput or TooLarge for a bad one."""
        frames = _encode(number := self._next_number(), request)
        await self._may_begin()
        session = self._sessions[number] = GuestSession(self, number)
        for frame in frames:
            self.send(frame)
        return session

    async def exec_kept(self, request: ExecRequest, mark: SessionMark) -> GuestSession:
        """Begin a session with a name, or go on with it. Raises as ``exec``, and Unavailable (``sessionLost``) when the guest
        has it no more."""
        run = self._reader.hello.run_id if self._reader.hello is not None else ""
        if mark.run and self.ready and mark.run != run:
            raise session_lost()
        if not run or not self.ready:
            return await self.exec(request)
        number, name = self._next_number(), bytes.fromhex(mark.key)
        if len(name) != NAME_BYTES:
            raise InvalidInput(f"a session's key has {NAME_BYTES * 2} hexadecimal digits", field="session")
        frames, resumes = _encode(number, request), bool(mark.run)
        await self._may_begin()
        session = self._sessions[number] = GuestSession(
            self, number, SessionStanding(run), (mark.stdout, mark.stderr), resumes=resumes
        )
        self.send(encode_name(number, name, stdout=mark.stdout, stderr=mark.stderr, resume=resumes))
        begin = not resumes
        if resumes:
            try:
                begin = await session.find_standing() == "new"
            except BaseException:
                self.forget(number)
                raise
        for frame in frames if begin else []:
            self.send(frame)
        return session

    async def _may_begin(self) -> None:
        """A command is begun only where the guest takes what it was sent before: else that would lie here. Raises Unavailable."""
        if not self.ready:
            raise Unavailable("the guest's agent doesn't answer yet", retry_after_seconds=0.2)
        try:
            async with asyncio.timeout(STANDING_SECONDS):
                await self.drained()
        except TimeoutError:
            raise Unavailable("the guest's agent doesn't accept input") from None
        if not self.ready:
            raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.2)

    def _next_number(self) -> int:
        self._last_session += 1
        return self._last_session

    def power(self, *, reboot: bool = False) -> None:
        """Ask the guest to power off, or to reboot; it does so in its own time."""
        self.send(encode_frame("O", payload=b"\2" if reboot else b"\1"))

    def set_time(self, unix_seconds: float) -> None:
        """Set the guest's clock."""
        self.send(encode_frame("T", payload=int(unix_seconds * 1e9).to_bytes(8, "little")))

    def close(self, why: str = "the connection to the guest's agent was closed") -> None:
        """``why``: for commands that run."""
        if self._transport is not None:
            self._why_closed = why
            self._transport.abort()

    # What sessions use.

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)
            if self._transport.get_write_buffer_size() > UNTAKEN_BYTES:
                self.close("the guest's agent doesn't take what it is sent")

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
            self._introduce("the guest's agent sent something that isn't a frame")
            self._rest(BEGINNING_POINTS)
            return
        if known is None and self._reader.hello is not None:
            self._on_hello(self._reader.hello)
        points, held = 0, 0
        for frame in frames:
            if frame.kind == "B":  # a new agent: it knows nothing of us
                self._end_sessions(again := "the guest's agent started again", for_good=True)
                self._introduce(again)
                points += BEGINNING_POINTS
                break
            asked, small = self._take(frame), len(frame.payload) < SMALL_BYTES
            points += UNASKED_POINTS if not asked else SMALL_POINTS if small else 0
            held += len(frame.payload)
        self._rest(points + (max(0, len(data) - held) >> 10))

    def _take(self, frame: Frame) -> bool:
        """Whether this guest may send that now."""
        session = self._sessions.get(frame.session)
        if session is not None:
            session.take(frame)
        elif frame.kind == "P" and self._on_process is not None and (process := decode_process(frame)) is not None:
            self._on_process(process)
        return session is not None

    def _rest(self, points: int) -> None:
        """Read no more until what came was made up for."""
        loop = asyncio.get_running_loop()
        since, self._counted_at = loop.time() - self._counted_at, loop.time()
        self._points = max(0.0, self._points - since * POINTS_PER_SECOND) + points
        if self._points <= SAVED_POINTS or self._resting is not None or self._transport is None:
            return
        self._transport.pause_reading()
        self._resting = loop.call_later(min(LONGEST_PAUSE_SECONDS, self._points / POINTS_PER_SECOND), self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._transport = None
        self._may_write.set()
        self._end_sessions(self._why_closed)
        self._on_lost()

    def _introduce(self, why: str = BROKEN) -> None:
        self._end_sessions(why)
        nonce = os.urandom(NONCE_BYTES)
        self._reader = FrameReader(nonce)
        self.send(encode_hello(nonce))

    def _end_sessions(self, why: str, *, for_good: bool = False) -> None:
        for session in list(self._sessions.values()):
            session.lose(why, for_good=for_good)
        self._sessions.clear()


def _encode(number: int, request: ExecRequest) -> list[bytes]:
    try:
        frames = encode_request(number, request.argv, request.env, request.cwd, tty=request.tty)
    except ValueError as error:
        raise InvalidInput(f"this command can't be run: {error}", field="argv") from None
    if sum(map(len, frames)) > REQUEST_BYTES:
        raise TooLarge(f"arguments and environment are longer than {REQUEST_BYTES >> 20} MiB", field="argv")
    if request.has_size:
        size = encode_size(number, request.rows, request.columns)
        frames = [*frames[:-1], size, frames[-1], size]  # an agent from before takes it only after EXECUTE
    return frames
