"""One command in a guest, over the channel to its agent: what it printed and nobody has read, and what it may still be sent.

The guest is a stranger: it gets a window of credit for each direction and one more for each that was used up, and whatever it
sends beyond that ends the session.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from typing import Literal, Protocol

from weft.contracts.driver.runtime import DETACHED, ExecChunk, SessionStanding
from weft.drivers.runtime.qemu.guest_agent.frames import (
    MOST_CODE,
    PAYLOAD_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW_BYTES,
    Frame,
    GuestStanding,
    OutOfStep,
    decode_number,
    decode_standing,
    encode_frame,
    encode_size,
)
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.objects.errors import Unavailable

CREDIT_STEP_BYTES = WINDOW_BYTES // 4
STANDING_SECONDS = 5.0
PIECE_BYTES = 64 << 10  # so much of what waits is put together
MOST_PIECES = 32  # where there are more, also what of one channel came before and after something of the other
_HANG_UP, _LET_GO = 0, 1
BROKEN = "the connection to the guest's agent broke"
UNKNOWN = "the command's fate is unknown"
_BEYOND = "the guest's agent sent unrequested data; the command was hung up"
_UNREAD = "the command's output was not read, and its node keeps no more of it; the command was hung up"


class Channel(Protocol):
    """A session's part of the connection to its guest. ``unread`` is counted for the guest by ``guest``."""

    unread: Unread
    guest: Hashable

    def send(self, frame: bytes) -> None: ...

    async def drained(self) -> None: ...

    def forget(self, number: int) -> None: ...


class GuestSession:
    """One command in the guest: an ExecSession. With a name (its standing then has a ``run``) it is a KeptSession whose output
    had ``arrived`` so far before: output counts as arrived when ``acknowledge`` reports it, not when it was read here.
    ``resumes``: the guest reports its standing first."""

    def __init__(
        self,
        channel: Channel,
        number: int,
        standing: SessionStanding | None = None,
        arrived: tuple[int, int] = (0, 0),
        *,
        resumes: bool = False,
    ) -> None:
        self._channel = channel
        self._number = number
        self.standing = standing or SessionStanding()
        self._resumes = resumes
        self._answer: asyncio.Future[GuestStanding | None] = asyncio.get_running_loop().create_future()
        self._arrived = {STDOUT: arrived[0], STDERR: arrived[1]}
        self._taken = 0
        self._parted = False
        self._lost, self._detached = f"{BROKEN}; {UNKNOWN}", True
        self._credit = WINDOW_BYTES
        self._has_credit = asyncio.Event()
        self._has_credit.set()
        self._granted = {STDOUT: WINDOW_BYTES, STDERR: WINDOW_BYTES}
        self._pieces: deque[tuple[int, bytearray]] = deque()
        self._news = asyncio.Event()
        self._tells_taken = False
        self._exit: ExecChunk | None = None
        self._owed = {STDOUT: 0, STDERR: 0}
        self._over = False

    @property
    def is_kept(self) -> bool:
        return bool(self.standing.run)

    async def find_standing(self) -> Literal["new", "goes on"]:
        """Wait for the guest's word on a session that goes on. Raises Unavailable."""
        try:
            async with asyncio.timeout(STANDING_SECONDS):
                answer = await self._answer
        except TimeoutError:
            answer = None
        if answer is None:
            raise Unavailable("the guest's agent doesn't answer", retry_after_seconds=0.2)
        if answer.how == "gone":
            raise session_lost()
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
        self._channel.send(encode_size(self._number, rows, columns))

    async def output(self) -> AsyncIterator[ExecChunk]:
        """Chunks in order per channel; ends after ``exit``. Raises Unavailable if the guest was lost before that."""
        while True:
            if self._pieces:
                channel, data = self._pieces.popleft()
                self._hold(-len(data))
                if not self.is_kept:
                    self._grant(channel, len(data))
                yield ExecChunk("stdout" if channel == STDOUT else "stderr", bytes(data))
            elif self._tells_taken:
                self._tells_taken = False
                yield ExecChunk("taken", taken=self._taken)
            elif self._exit is not None:
                yield self._exit
                return
            elif self._over:
                raise Unavailable(self._lost, reason=DETACHED if self.is_kept and self._detached else "")
            else:
                self._news.clear()
                await self._news.wait()

    def acknowledge(self, stdout: int, stderr: int) -> None:
        for channel, arrived in ((STDOUT, stdout), (STDERR, stderr)):
            if arrived > self._arrived[channel]:
                self._grant(channel, arrived - self._arrived[channel])
                self._arrived[channel] = arrived

    async def let_go(self) -> None:
        """Leave it to the next that comes for it."""
        self._part(_LET_GO)

    async def close(self) -> None:
        """Hang up: the command gets SIGHUP if it still runs. One that is kept is forgotten only now, though it has ended."""
        self._part(_HANG_UP)

    def _part(self, how: int) -> None:
        if not self._parted and (self.is_kept or not self._over):
            self._parted = self._over = True
            self._has_credit.set()
            self._channel.send(encode_frame("K", channel=how, session=self._number))
        self._drop()
        self._channel.forget(self._number)

    def _grant(self, channel: int, taken: int) -> None:
        self._owed[channel] += taken
        if self._owed[channel] >= CREDIT_STEP_BYTES and not self._over:
            payload = self._owed[channel].to_bytes(4, "little")
            self._channel.send(encode_frame("W", channel=channel, session=self._number, payload=payload))
            self._granted[channel] += self._owed[channel]
            self._owed[channel] = 0

    # What the channel calls.

    def take(self, frame: Frame) -> None:
        """A frame of this session; one that it may not send now ends it."""
        try:
            self._take(frame)
        except OutOfStep:
            self._break(_BEYOND)

    def _take(self, frame: Frame) -> None:
        match frame.kind:
            case "D":
                self._take_data(frame.channel, frame.payload)
            case "W":
                taken = decode_number(frame)
                if not 0 < taken <= WINDOW_BYTES - self._credit:
                    raise OutOfStep
                self._credit += taken
                self._taken += taken
                self._has_credit.set()
                if self.is_kept:
                    self._tells_taken = True
                    self._news.set()
            case "N":
                if self._resumes and not self._answer.done():
                    self._take_standing(decode_standing(frame))
            case "Q":
                number = decode_number(frame)
                if number > MOST_CODE:
                    raise OutOfStep
                self._exit = ExecChunk("exit", signal=number) if frame.channel else ExecChunk("exit", code=number)
                self._end()
            case _:
                raise OutOfStep

    def _take_data(self, channel: int, data: bytes) -> None:
        left = self._granted.get(channel, 0) - len(data)
        if left < 0 or not data:
            raise OutOfStep
        self._granted[channel] = left
        latest = self._pieces[-1] if self._pieces else None
        if len(self._pieces) >= MOST_PIECES:
            latest = next((piece for piece in reversed(self._pieces) if piece[0] == channel), None)
        if latest is not None and latest[0] == channel and len(latest[1]) + len(data) <= PIECE_BYTES:
            latest[1].extend(data)
        else:
            self._pieces.append((channel, bytearray(data)))
        self._news.set()
        self._hold(len(data))

    def _take_standing(self, answer: GuestStanding) -> None:
        self.standing = SessionStanding(self.standing.run, answer.received, answer.taken, answer.ended)
        self._taken = answer.taken
        self._credit -= answer.received - answer.taken
        if self._credit <= 0:
            self._has_credit.clear()
        self._answer.set_result(answer)

    def lose(self, why: str = BROKEN, *, for_good: bool = False) -> None:
        """The guest's agent has gone; ``for_good``: and whatever it kept."""
        if not self._over:
            self._lost = f"{why}; {UNKNOWN}"
        self._detached, self._parted = not for_good, True
        if not self._answer.done():
            self._answer.set_result(None)
        self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._has_credit.set()
            self._news.set()
        self._channel.forget(self._number)

    def _break(self, why: str) -> None:
        """Have the guest end it, and give its reader the reason."""
        self._lost, self._detached, self._exit = why, False, None
        self._part(_HANG_UP)
        if not self._answer.done():
            self._answer.set_result(None)
        self._news.set()

    def _break_unread(self) -> None:
        self._break(_UNREAD)

    def _drop(self) -> None:
        """Drop the output that nobody will read any more."""
        self._hold(-sum(len(data) for _, data in self._pieces))
        self._pieces.clear()

    def _hold(self, size: int) -> None:
        if size:
            self._channel.unread.take(self._channel.guest, self._break_unread, size)


def session_lost() -> Unavailable:
    return Unavailable(f"the guest no longer has this command's session; {UNKNOWN}", reason="sessionLost")
