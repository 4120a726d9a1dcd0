"""The reporter, in virtual time: the first change at once, then batches; nothing unsaid is lost; a sign of life."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from weft.agent.server.line import ServerLine
from weft.agent.server.outbox import Outbox
from weft.agent.server.reporter import SYNC_SECONDS, Reporter, ReportQuestion
from weft.kinds.allocation import AllocationReport
from weft.kinds.node import NodeReport
from weft.objects.errors import Unavailable
from weft.objects.identity import Ref
from weft.protocol.report import ReportAnswer, ReportBody

HEARTBEAT_SECONDS = 8.0


class HandClock:
    """Time that stands until the test moves it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.thread: Executor | None = None
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time + seconds, id(future), future))
        await future

    async def settle(self) -> None:
        """Let everyone act who can, also the report in its thread: what comes after it there waited for it."""
        for _ in range(3):
            for _ in range(5):
                await asyncio.sleep(0)
            if self.thread is not None:
                await asyncio.get_running_loop().run_in_executor(self.thread, str)

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, waking who sleeps in the right order, each with time to act."""
        end = self.time + seconds
        while True:
            await self.settle()
            self._sleepers = [s for s in self._sleepers if not s[2].done()]
            heapq.heapify(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > end:
                break
            self.time, _, future = heapq.heappop(self._sleepers)
            future.set_result(None)
        self.time = end


class Recorder:
    """A server that keeps what it was told, and when."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.line = ServerLine(clock, "")
        self.down = False
        self.answer = ReportAnswer()
        self.told: list[tuple[float, ReportBody]] = []

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        if self.down:
            raise Unavailable("no weft server answers")
        self.told.append((self.clock.time, body))
        return self.answer

    def states(self) -> list[str]:
        return [report.state for _, body in self.told for report in body.allocations.values()]


class Bench:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.server = Recorder(self.clock)
        self.node = NodeReport(version="1")
        self.removals: list[str] = []
        server: Any = self.server
        self.reporter = Reporter(
            "n1",
            server,
            self.clock,
            asyncio.Event(),
        )
        self.clock.thread = self.reporter._thread

    async def save_before_report(self) -> None: ...

    def make_node_report(self) -> NodeReport:
        return self.node

    def make_question(self) -> ReportQuestion:
        return ReportQuestion()

    @property
    def longest_silence_seconds(self) -> float:
        return HEARTBEAT_SECONDS

    def take_answer(self, answer: ReportAnswer) -> None:
        self.removals += answer.remove_volumes

    def note_contact(self) -> None: ...


@asynccontextmanager
async def running() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.ensure_future(bench.reporter.run(bench))
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        bench.reporter.close()


WEB = Ref("vm", "web", "u", "default")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with running() as bench:
        yield bench


async def test_the_first_change_goes_at_once_and_the_next_ones_together(bench: Bench) -> None:
    bench.reporter.put("a", AllocationReport(state="pending"))
    await bench.clock.settle()
    assert [(when, list(body.allocations)) for when, body in bench.server.told] == [(0.0, ["a"])]
    for state in ("preparing", "starting", "running"):
        bench.reporter.put("a", AllocationReport(state=state))  # type: ignore[arg-type]
        bench.reporter.put("b", AllocationReport(state=state))  # type: ignore[arg-type]
    await bench.clock.pass_by(1.0)
    (_, second), *more = bench.server.told[1:]
    assert {name: report.state for name, report in second.allocations.items()} == {"a": "running", "b": "running"}
    assert more == []


async def test_at_most_five_batches_a_second(bench: Bench) -> None:
    for number in range(40):
        bench.reporter.put("a", AllocationReport(restarts=number))
        await bench.clock.pass_by(0.05)
    assert len(bench.server.told) <= 2.0 / 0.2 + 1
    await bench.clock.pass_by(1.0)
    assert bench.server.told[-1][1].allocations["a"].restarts == 39


async def test_what_is_said_already_is_not_said_again_but_life_is(bench: Bench) -> None:
    bench.reporter.put("a", AllocationReport(state="running"))
    await bench.clock.pass_by(3 * HEARTBEAT_SECONDS + 1)
    first, *others = [body for _, body in bench.server.told]
    assert first.node is not None
    assert len(others) >= 2 and all(body == ReportBody(version=first.version, heard="") for body in others)
    bench.reporter.put("a", AllocationReport(state="running"))
    await bench.clock.settle()
    assert len(bench.server.told) == len(others) + 1


async def test_nothing_is_lost_while_no_server_answers(bench: Bench) -> None:
    bench.server.down = True
    bench.reporter.put("a", AllocationReport(state="starting"))
    for reason in ("One", "Two"):
        bench.reporter.put_event(WEB, "Normal", reason, "")
    bench.reporter.put_removed_volume("v1")
    await bench.clock.pass_by(30)
    bench.reporter.put("a", AllocationReport(state="running"))
    bench.reporter.put_event(WEB, "Normal", "Three", "")
    bench.server.down = False
    await bench.clock.pass_by(10)
    assert bench.server.states() == ["running"]
    told = [e.reason for _, body in bench.server.told for e in body.events]
    assert told == ["One", "Two", "Three"]
    assert bench.server.told[0][1].removed_volumes == ["v1"]
    assert bench.server.told[0][1].node == bench.node


async def test_a_server_that_forgot_is_told_everything_again(bench: Bench) -> None:
    bench.reporter.put("a", AllocationReport(state="running"))
    await bench.clock.pass_by(1)
    bench.reporter.repeat()
    await bench.clock.pass_by(1)
    again = bench.server.told[-1][1]
    assert (list(again.allocations), again.node) == (["a"], bench.node)
    bench.reporter.compare("a", AllocationReport(state="running"))
    await bench.clock.pass_by(1)
    assert bench.server.told[-1][1] is again
    bench.reporter.compare("a", AllocationReport())
    await bench.clock.pass_by(1)
    assert list(bench.server.told[-1][1].allocations) == ["a"]


async def test_what_is_dropped_is_said_no_more(bench: Bench) -> None:
    bench.server.down = True
    bench.reporter.put("a", AllocationReport(state="released"))
    await bench.clock.pass_by(1)
    bench.reporter.drop("a")
    bench.server.down = False
    await bench.clock.pass_by(20)
    assert bench.server.states() == []


async def test_volumes_to_remove_are_handed_on(bench: Bench) -> None:
    bench.server.answer = ReportAnswer(remove_volumes=["v1"])
    bench.reporter.wake()
    await bench.clock.settle()
    assert bench.removals == ["v1"]


async def test_a_node_whose_older_report_came_late_says_its_newest_again(bench: Bench) -> None:
    bench.reporter.wake()
    await bench.clock.pass_by(1)
    first = bench.server.told[-1][1]
    assert first.node is not None and first.version
    bench.server.answer = ReportAnswer(version=first.version)
    await bench.clock.pass_by(20)
    assert [body.node for _, body in bench.server.told[1:]] == [None] * len(bench.server.told[1:])
    bench.server.answer = ReportAnswer(version="another life's.3")
    await bench.clock.pass_by(HEARTBEAT_SECONDS + 1)
    again = bench.server.told[-1][1]
    assert again.node == bench.node and again.version != first.version


async def test_an_event_is_safe_from_a_power_cut_soon_though_the_next_try_is_far_away(
    bench: Bench, tmp_path: Path
) -> None:
    bench.server.down = True
    bench.server.line.choose_pause = lambda tries, first=0.5: 18.0  # type: ignore[method-assign]
    outbox = bench.reporter.outbox = Outbox(tmp_path, bench.clock)
    bench.reporter.wake()
    await bench.clock.pass_by(1.0)
    for _ in range(2):
        bench.reporter.put_event(WEB, "Normal", "GuestRestarted", "")
        assert outbox.is_due
        await bench.clock.pass_by(SYNC_SECONDS)
        for _ in range(300):
            if outbox.is_due:
                await asyncio.sleep(0.01)  # the thread's turn
                await bench.clock.pass_by(0.02)  # the next wait begins once a slow disk has ended the sync before
        assert not outbox.is_due and len(outbox) and not bench.server.told
