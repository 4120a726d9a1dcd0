"""The history of a workload that migrates, its samples, its flows and its log, follows it once it runs at the target: neither its
pause nor its migration waits for that. Both ends go on with it after they have left the migration, until the target has all of it
or HISTORY_SECONDS are over. The source reads it before its files go, and the target's agent waits a little for the log before it
reads on in the workload's console."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Literal

from weft.agent.flow.files import MOST_PIECES as MOST_FLOW_PIECES
from weft.agent.flow.files import ArrivingFlows
from weft.agent.logs.carry import MOST_PIECES as MOST_LOG_PIECES
from weft.agent.logs.carry import Arriving, pack_log
from weft.agent.migration.role import NodeContext, Role
from weft.agent.migration.transport import MigrationConnection
from weft.agent.samples.carry import MOST_PIECES
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import Clock
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.protocol.migration import LogMark, MigrationRequest

log = logging.getLogger("weft.agent")
HISTORY_SECONDS = 300.0  # after the guest was taken over; what hasn't come by then stays behind
READ_SECONDS = 10.0  # the guest's files wait so long for it to be read
LOG_SECONDS = 10.0  # the target's agent waits so long for the log, and reads on without it
ANSWER_SECONDS = 5.0  # for the source to read the last answer
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0  # until it is sent again
MOST_REFUSALS = 5  # of one part, one after the other
MOST_TIMES = 8  # that the pieces of one part may come, on average
Part = Literal["logs", "traffic", "samples"]
NAMES: dict[Part, str] = {"logs": "its log", "traffic": "its recorded flows", "samples": "its samples"}


async def mark_log(node: NodeContext, local: LocalAllocation) -> LogMark | None:
    """How far the log of its console has come here; None: it has none."""
    if node.logs is None:
        return None
    number, cursor = await asyncio.to_thread(node.logs.store.standing, local.spec.workload.uid)
    position = cursor.position if cursor is not None else ""
    return LogMark(number, int(position)) if position.isdecimal() else None


class HistorySender:
    """Sends what was measured of a guest here, its flows, and what it printed, to the node that has taken it over; what fails is
    sent again. Another cluster gets no flows, which name workloads of this one, and a log without the uid of this one's workload.

    ``connect`` returns the connection in use now; ``close`` is called last."""

    def __init__(
        self,
        connect: Callable[[], MigrationConnection],
        close: Callable[[], None],
        node: NodeContext,
        local: LocalAllocation,
        *,
        between_clusters: bool = False,
    ) -> None:
        self._connect, self._close, self._node, self._local = connect, close, node, local
        self._between_clusters = between_clusters
        self._until = node.clock.elapsed() + HISTORY_SECONDS
        self._was_read = False
        self._left: dict[str, str] = {}  # what stays here, and why
        self.task = asyncio.ensure_future(self._run())

    async def release(self) -> None:
        """Wait until it is read, but not for long: the guest's files are about to go."""
        clock = self._node.clock
        until = clock.elapsed() + READ_SECONDS
        while not (self._was_read or self.task.done()) and clock.elapsed() < until:
            await clock.sleep(0.05)

    async def _run(self) -> None:
        try:
            parts = await self._read()
            self._was_read = True
            for part, pieces in parts.items():
                await self._send(part, pieces)
            if self._left:
                self._give_up()
        finally:
            self._close()

    async def _read(self) -> dict[Part, list[bytes]]:
        """Read the parts in the order in which they are sent: the log, for which the target waits, first, and what ends with an
        empty piece last."""
        uid, node = self._local.spec.workload.uid, self._node
        read: dict[Part, list[bytes]] = {"logs": [], "traffic": [], "samples": []}
        try:
            read["samples"] = (await node.samples.pack(uid))[:MOST_PIECES]
        except (WeftError, OSError) as problem:
            self._left[NAMES["samples"]] = str(problem)
        read["samples"].append(b"")
        try:
            if node.logs is not None:
                await node.logs.drain(self._local)
                read["logs"] = await asyncio.to_thread(pack_log, node.logs.store, uid, named=not self._between_clusters)
        except (WeftError, OSError) as problem:
            self._left[NAMES["logs"]] = str(problem)
        try:
            if node.flows is not None and not self._between_clusters:
                read["traffic"] = await asyncio.to_thread(node.flows.pack, uid)
        except (WeftError, OSError) as problem:
            self._left[NAMES["traffic"]] = str(problem)
        return read

    async def _send(self, part: Part, pieces: list[bytes]) -> None:
        """Send the pieces, again from the one that failed; from the first on where the target refuses one, since its agent may be
        another by now."""
        clock = self._node.clock
        sent = refusals = 0
        pause = PAUSE_SECONDS
        while sent < len(pieces):
            try:
                await self._connect().order(_pack(part, pieces[sent], sent + 1))
                sent, refusals, pause = sent + 1, 0, PAUSE_SECONDS
                continue
            except DriverFailed as problem:
                sent, refusals, why = 0, refusals + 1, problem.message
            except (WeftError, OSError) as problem:
                why = str(problem)
            if refusals == MOST_REFUSALS or clock.elapsed() + pause >= self._until:
                self._left[NAMES[part]] = why
                return
            log.info("%s: %s will be sent again: %s", self._local.what, NAMES[part], why)
            await clock.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    def _give_up(self) -> None:
        *others, last = self._left
        what = f"{', '.join(others)} and {last}" if others else last
        verb = "stays" if self._left.keys() == {NAMES["logs"]} else "stay"
        message = f"{what} {verb} on node {self._node.host.node}: {self._left[last]}"
        if self._node.reporter is None:
            log.warning("%s: %s", self._local.what, message)
        else:
            self._node.reporter.put_event(self._local.spec.workload, "Warning", "HistoryLeftBehind", message)


def _pack(part: Part, piece: bytes, number: int) -> MigrationRequest:
    if part == "logs":
        return MigrationRequest("logs", logs=piece, piece=number)
    if part == "traffic":
        return MigrationRequest("traffic", traffic=piece, piece=number)
    return MigrationRequest("samples", samples=piece, piece=number)


async def finish_carrying(ends: Iterable[Role], clock: Clock) -> None:
    """Wait for what is under way when the agent ends, but not for long."""
    left, until = list(ends), clock.elapsed() + READ_SECONDS
    while any(end.is_carrying for end in left) and clock.elapsed() < until:
        await clock.sleep(0.05)
    rests = [end.rest for end in left if end.rest is not None]
    for rest in rests:
        rest.cancel()
    await asyncio.gather(*rests, return_exceptions=True)


class _PieceTurns:
    """The pieces of one part in their order: a piece that comes again counts once, and the first one starts over, as is needed
    after one that could not be taken."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most = what, MOST_TIMES * most
        self._count = self._last = self._taking = 0
        self.is_first = False  # the one that is taken now
        self.is_expected = False
        self.is_over = False

    def is_next(self, number: int) -> bool:
        """Whether piece ``number`` is taken now: 0, of an older source, stands for the next one. Raises InvalidInput."""
        if not self.is_expected or self._count >= self._most or (self.is_over and not number):
            raise InvalidInput(f"no {self._what} expected")
        self._count += 1
        number = number or self._last + 1
        if self.is_over or 1 < number <= self._last:
            return False
        if number not in (1, self._last + 1):
            raise InvalidInput(f"a piece is missing before piece {number}: send them from the first on")
        self.is_first, self._taking, self._last = number == 1, number, 0
        return True

    def note(self, *, is_over: bool) -> None:
        """It was taken."""
        self._last, self.is_over = self._taking, is_over


class SamplesTaker:
    """The target's end for the samples, which come last."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._node, self._local = node, local
        self.turns = _PieceTurns("samples are", MOST_PIECES + 1)

    def begin(self) -> None:
        """The guest was taken over."""
        self.turns.is_expected = True

    async def take(self, piece: bytes, number: int = 0) -> None:
        """Raises InvalidInput, OSError."""
        if not self.turns.is_next(number):
            return
        if piece:
            await self._node.samples.take(self._local.spec.workload.uid, piece, self._node.clock.now())
        self.turns.note(is_over=not piece)


class FlowsTaker:
    """The target's end for the folded flows."""

    def __init__(self, node: NodeContext, local: LocalAllocation) -> None:
        self._flows, self._clock = node.flows, node.clock
        self._uid = local.spec.workload.uid
        self._arriving = ArrivingFlows()
        self.turns = _PieceTurns("flows are", MOST_FLOW_PIECES)

    def begin(self) -> None:
        """The guest was taken over."""
        self.turns.is_expected = self._flows is not None

    async def take(self, piece: bytes, number: int = 0) -> None:
        """Raises InvalidInput, OSError."""
        if not self.turns.is_next(number) or self._flows is None:
            return
        if self.turns.is_first:
            self._arriving = ArrivingFlows()
        now = self._clock.now()
        intervals = await asyncio.to_thread(self._arriving.take, piece, now)
        if intervals is not None:
            await asyncio.to_thread(self._flows.files.take, self._uid, intervals, now)
        self.turns.note(is_over=intervals is not None)


class LogTaker:
    """The target's end for the log."""

    def __init__(self, node: NodeContext, local: LocalAllocation, *, between_clusters: bool = False) -> None:
        self._clock, self._logs = node.clock, node.logs
        self._uid, self._named = local.spec.workload.uid, not between_clusters
        self._arriving: Arriving | None = None
        self._until: float | None = None  # elapsed seconds, once the guest was taken over
        self.turns = _PieceTurns("log is", MOST_LOG_PIECES)
        self.mark: LogMark | None = None

    def begin(self) -> None:
        """The guest was taken over."""
        if self._logs is not None and self._until is None:
            self._until, self.turns.is_expected = self._clock.elapsed() + LOG_SECONDS, True
            self._logs.expect(self._uid, LOG_SECONDS, self.mark)

    @property
    def is_awaited(self) -> bool:
        """Whether this node waits for it before it reads on."""
        return self._until is not None and not self.turns.is_over and self._clock.elapsed() < self._until

    async def take(self, piece: bytes, number: int = 0) -> None:
        """Raises InvalidInput, OSError."""
        if not self.turns.is_next(number) or self._logs is None:
            return
        if self._arriving is None or self.turns.is_first:
            self._arriving = Arriving(self._logs.store, self._uid, named=self._named)
        is_last = await asyncio.to_thread(self._arriving.take, piece, late=not self.is_awaited)
        self.turns.note(is_over=is_last)
        if is_last:
            self._arriving = None
            self._logs.expect_no_more(self._uid)


class HistoryTaker:
    """The target's end: takes each piece once, and keeps the order in which they come."""

    def __init__(self, node: NodeContext, local: LocalAllocation, *, between_clusters: bool = False) -> None:
        self._clock, self._between_clusters = node.clock, between_clusters
        self._samples, self._flows = SamplesTaker(node, local), FlowsTaker(node, local)
        self._logs = LogTaker(node, local, between_clusters=between_clusters)
        self._until: float | None = None  # elapsed seconds, once the guest was taken over
        self._taking = asyncio.Lock()

    def note_mark(self, mark: LogMark | None) -> None:
        """How far the log had come at the source."""
        self._logs.mark = mark or self._logs.mark

    def begin(self) -> None:
        """The guest is taken over. Called before that is reported, for then the server may have its console read here."""
        self._until = self._until or self._clock.elapsed() + HISTORY_SECONDS
        for taker in (self._samples, self._flows, self._logs):
            taker.begin()

    async def take(self, ask: MigrationRequest) -> bool:
        """Whether ``ask`` is a piece of the history. Raises InvalidInput, OSError."""
        async with self._taking:
            if ask.do == "samples":
                await self._samples.take(ask.samples, ask.piece)
            elif ask.do == "traffic" and not self._between_clusters:
                await self._flows.take(ask.traffic, ask.piece)
            elif ask.do == "logs":
                await self._logs.take(ask.logs, ask.piece)
            else:
                return False
        return True

    @property
    def is_awaited(self) -> bool:
        return self._until is not None and not self._is_over

    @property
    def _is_over(self) -> bool:
        return self._samples.turns.is_over and not self._logs.is_awaited

    async def finish(self) -> None:
        """Wait for what is on its way."""
        while self._until is not None and not self._is_over and self._clock.elapsed() < self._until:
            await self._clock.sleep(0.1)
        await self._clock.sleep(ANSWER_SECONDS)
