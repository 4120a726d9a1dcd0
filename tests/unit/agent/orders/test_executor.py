"""What all kinds of orders have in common: lanes, bounds, retries, ends, and what is remembered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from weft.agent.orders.executor import Executor, Handler
from weft.contracts.clock import SystemClock
from weft.kinds.orders import OrderKind
from weft.objects.errors import DriverFailed


class Order(msgspec.Struct, frozen=True):
    key: str
    lane: str = ""
    lasts: bool = False
    version: int = 1
    node_uid: str = "n"


class Report(msgspec.Struct, frozen=True):
    key: str
    phase: str = "working"


class Work(Handler[Order, Report]):
    """Each order is under way until the test ends it, with what it raises."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Future[None]] = {}
        self.again: float | None = None

    def lane(self, order: Order) -> str:
        return order.lane or order.key

    def lasts(self, order: Order) -> bool:
        return order.lasts

    def begin(self, order: Order, former: Report | None) -> Report:
        return Report(order.key)

    async def do(self, order: Order, show: Callable[[Report], None]) -> Report:
        self.begun.append(order.key)
        show(Report(order.key, "halfway"))
        self.ends[order.key] = asyncio.get_running_loop().create_future()
        await self.ends[order.key]
        return Report(order.key, "done")

    def fail(self, order: Order, problem: Exception) -> tuple[Report, float | None]:
        return Report(order.key, f"failed: {problem}"), self.again


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.changed = folder, Work(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def keeping(self, **fields: object) -> AsyncIterator[Executor[Order, Report]]:
        kind = OrderKind("stir", Order, Report, (), **fields)  # type: ignore[arg-type]
        executor = Executor(kind, self.work, str(self.folder), SystemClock(), self.changed.set)
        keeping = asyncio.ensure_future(executor.keep())
        yield executor
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.001)

    async def end(self, key: str, problem: Exception | None = None) -> None:
        await self.until(lambda: key in self.work.ends)
        end = self.work.ends.pop(key)
        end.set_exception(problem) if problem is not None else end.set_result(None)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def phases(executor: Executor[Order, Report]) -> dict[str, str]:
    return {one.key: one.phase for one in executor.report()}


async def test_a_lane_has_one_at_a_time_and_the_kind_has_a_bound_but_what_lasts_has_none(lab: Lab) -> None:
    async with lab.keeping(at_once=2) as executor:
        lasting = Order("stands", lane="x", lasts=True)
        executor.put_orders([lasting, Order("a", lane="x"), Order("b", lane="x"), Order("c"), Order("d")])
        await lab.until(lambda: lab.work.begun == ["stands", "a", "c"])
        assert phases(executor) == dict.fromkeys(("stands", "a", "c"), "halfway") and executor.is_asking
        await lab.end("a")
        await lab.until(lambda: lab.work.begun == ["stands", "a", "c", "b"])
        await lab.end("c")
        await lab.until(lambda: lab.work.begun[-1] == "d")


async def test_an_error_of_any_kind_is_reported_and_tried_again_only_if_its_handler_says_so(lab: Lab) -> None:
    async with lab.keeping() as executor:
        executor.put_orders([Order("a")])
        lab.work.again = 0.01
        await lab.end("a", DriverFailed("no"))
        await lab.until(lambda: lab.work.begun == ["a", "a"])
        lab.work.again = None
        await lab.end("a", TypeError("'int' object is not iterable"))
        await lab.until(lambda: phases(executor) == {"a": "failed: 'int' object is not iterable"})
        await asyncio.sleep(0.02)
        assert lab.work.begun == ["a", "a"]


@pytest.mark.parametrize("cancels", [True, False])
async def test_work_whose_order_changes_begins_again_unless_its_kind_is_always_finished(
    lab: Lab, cancels: bool
) -> None:
    async with lab.keeping(cancels=cancels) as executor:
        executor.put_orders([Order("a")])
        await lab.until(lambda: "a" in lab.work.ends)
        first = lab.work.ends["a"]
        executor.put_orders([Order("a", version=2)])
        if cancels:
            await lab.until(lambda: first.cancelled() and lab.work.begun == ["a", "a"])
        await lab.end("a")
        await lab.until(lambda: phases(executor) == {"a": "done"})
        assert len(lab.work.begun) == (2 if cancels else 1)
        executor.put_orders([])
        assert executor.report() == [] and not executor.is_asking


@pytest.mark.parametrize(("durable", "remembered", "begun"), [(False, 0, 3), (True, 0, 2), (True, 1, 1)])
async def test_what_is_over_is_done_again_unless_its_kind_is_remembered(
    lab: Lab, durable: bool, remembered: int, begun: int
) -> None:
    """After a restart with the same order, and after a time without it."""
    for gone in (False, False, True):
        async with lab.keeping(durable=durable, remembered=remembered) as executor:
            if gone:
                executor.put_orders([])
            executor.put_orders([Order("a")])
            if not phases(executor):
                await lab.end("a")
            await lab.until(lambda executor=executor: phases(executor) == {"a": "done"})
    assert len(lab.work.begun) == begun


async def test_a_file_that_can_not_be_read_is_as_if_nothing_was_done(lab: Lab) -> None:
    (lab.folder / "stir-work.json").write_text('[{"phase": 3')
    async with lab.keeping(durable=True) as executor:
        executor.put_orders([Order("a")])
        await lab.end("a")
        await lab.until(lambda: phases(executor) == {"a": "done"})
