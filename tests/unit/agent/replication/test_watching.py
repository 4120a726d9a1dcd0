"""A node asks after replicas that get no points for a while, and reports only what ends that."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest

from weft.agent.replication import peer
from weft.agent.replication import watching as module
from weft.agent.replication.watching import Watching
from weft.agent.server.client import Server
from weft.contracts.clock import SystemClock
from weft.kinds.fields.replication.work import AskOrder
from weft.objects.errors import IllegalTransition, Unavailable
from weft.protocol.report import OpenedLink

PROMOTED = IllegalTransition("it was promoted", reason="staleGeneration", hint="look there")


class _Server:
    def read_link(self, node: str, cluster: str) -> OpenedLink:
        return OpenedLink("", "", "")


class There:
    """The other cluster, as one question after the other finds it; the last again and again."""

    def __init__(self, patch: pytest.MonkeyPatch, *found: Exception | None) -> None:
        self.found, self.asked, self.closed, self._lock = list(found), list[tuple[str, str]](), 0, threading.Lock()
        there = self

        class Line:
            def __init__(self, *_: object) -> None: ...

            def check_standby(self, name: str, origin: str) -> None:
                with there._lock:
                    there.asked.append((name, origin))
                    found = there.found.pop(0) if len(there.found) > 1 else there.found[0]
                if found is not None:
                    raise found

            def close(self) -> None:
                there.closed += 1

        patch.setattr(peer, "Peer", Line)
        patch.setattr(module, "ASK_EVERY_SECONDS", 0.001)


class HandClock(SystemClock):
    """Its sleeps end by hand."""

    def __init__(self) -> None:
        self.slept, self.turn = list[float](), asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.turn.wait()
        self.turn.clear()


def make_ask(**changes: Any) -> AskOrder:
    order = AskOrder(uid="r", node_uid="n", attempt=3, cluster="west", project="lab", replica="web")
    return msgspec.structs.replace(order, **changes)


@contextlib.asynccontextmanager
async def watching(
    changed: Callable[[], None] = lambda: None, *, clock: SystemClock | None = None
) -> AsyncIterator[Watching]:
    work = Watching("n1", cast(Server, _Server()), clock or SystemClock(), changed)
    keeping = asyncio.ensure_future(work.keep())
    yield work
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("odd", [Unavailable("no line"), AttributeError("'list' object has no attribute 'get'")])
async def test_it_asks_again_until_the_replica_was_promoted(monkeypatch: pytest.MonkeyPatch, odd: Exception) -> None:
    there = There(monkeypatch, None, odd, None, PROMOTED)
    told = asyncio.Event()
    async with watching(told.set) as work:
        work.put_orders([make_ask()])
        assert not work.is_asking and work.report() == []  # it is nothing to report often for
        async with asyncio.timeout(30):
            await told.wait()
        [report] = work.report()
        assert (report.uid, report.attempt, report.phase, report.reason) == ("r", 3, "failed", "staleGeneration")
        assert (report.message, there.asked) == ("it was promoted; look there", [("web", "r")] * 4)
        await until(lambda: there.closed == 4)


async def test_it_asks_no_more_once_the_order_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    there = There(monkeypatch, None)
    async with watching() as work:
        work.put_orders([make_ask()])
        await until(lambda: len(there.asked) >= 3)
        work.put_orders([])
        await asyncio.sleep(0)  # the task ends at its next step
        asked = len(there.asked)
        await asyncio.sleep(0.05)
        assert len(there.asked) <= asked + 1  # one may have been on its way


async def test_all_replicas_at_a_cluster_are_asked_after_by_one_line_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, clock = There(monkeypatch, None), HandClock()
    monkeypatch.setattr(module, "ASK_EVERY_SECONDS", 30.0)
    async with watching(clock=clock) as work:
        asks = [make_ask(uid=f"r{number}", replica=f"web-{number}") for number in range(5)]
        work.put_orders(asks[:4])
        await until(lambda: len(clock.slept) == 1)
        assert there.asked == [] and 15.0 <= clock.slept[0] <= 45.0
        work.put_orders(asks[1:])  # one got its next point meanwhile, one is new
        clock.turn.set()
        await until(lambda: len(clock.slept) == 2)
        assert (sorted(there.asked), there.closed) == ([(f"web-{number}", f"r{number}") for number in (1, 2, 3)], 1)


async def test_what_was_found_out_is_told_once_and_the_others_are_asked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    there = There(monkeypatch, PROMOTED, None)
    async with watching() as work:
        work.put_orders([make_ask(uid="a", replica="a"), make_ask(uid="b", replica="b")])
        await until(lambda: len(there.asked) >= 6)
        [report] = work.report()
        assert [uid for _, uid in there.asked].count(report.uid) == 1
