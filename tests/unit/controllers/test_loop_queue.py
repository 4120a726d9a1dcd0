"""What a controller looks at next, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.controllers.loop import Plan, Queue, run_controller
from weft.informer.commit import Commit
from weft.informer.view import Changed, View


async def take(queue: Queue) -> list[str] | None:
    """What is there now, None if nothing is."""
    task = asyncio.ensure_future(queue.take(10))
    for _ in range(5):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        return None
    return task.result()


async def test_each_key_is_taken_once_in_the_order_they_came() -> None:
    queue = Queue(VirtualClock())
    queue.add(["b", "a"])
    queue.add(["b", "c"])
    assert await queue.take(2) == ["b", "a"] and await queue.take(2) == ["c"]
    assert await take(queue) is None


async def test_a_key_for_later_comes_at_its_time_and_once() -> None:
    clock = VirtualClock()
    queue = Queue(clock)
    for _ in range(3):
        queue.add_later("a", 5.0)
    clock.advance(4.0)
    assert await take(queue) is None
    clock.advance(1.5)
    assert await take(queue) == ["a"]
    clock.advance(60.0)
    assert await take(queue) is None


async def test_an_earlier_time_replaces_a_later_one() -> None:
    clock = VirtualClock()
    queue = Queue(clock)
    queue.add_later("a", 50.0)
    queue.add_later("a", 1.0)
    clock.advance(2.0)
    assert await take(queue) == ["a"]
    clock.advance(60.0)
    assert await take(queue) is None


async def test_one_who_waits_is_woken_by_a_key_and_by_time() -> None:
    clock = VirtualClock()
    queue = Queue(clock)
    waiting = asyncio.ensure_future(queue.take(10))
    await asyncio.sleep(0)
    queue.add_later("a", 3.0)
    for _ in range(5):
        await asyncio.sleep(0)
    clock.advance(3.0)
    assert await asyncio.wait_for(waiting, 60) == ["a"]


async def test_what_fails_comes_again_at_once_and_then_ever_more_slowly() -> None:
    clock = VirtualClock()
    queue = Queue(clock)
    queue.failed("a")
    assert await take(queue) == ["a"]
    pauses = []
    for _ in range(12):
        queue.failed("a")
        began = clock.elapsed()
        while await take(queue) is None:
            clock.advance(0.025)
        pauses.append(round(clock.elapsed() - began, 1))
    assert pauses == sorted(pauses) and pauses[0] <= 0.1 and pauses[-1] == 10.0
    queue.succeeded("a")
    queue.failed("a")
    assert await take(queue) == ["a"]


class Broken:
    """A controller whose plan for one of its objects always fails."""

    name = "broken"
    kinds: Sequence[str] = ()

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return ()

    async def observe(self) -> None:
        pass

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        self.asked.append(list(keys))
        if "bad" in keys:
            raise ValueError("no plan for it")
        return Plan([Commit(key, [], []) for key in keys])


async def test_what_cannot_be_planned_is_tried_ever_more_slowly_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, broken, done = VirtualClock(), Broken(), list[str]()

    async def perform(commits: Sequence[Commit], refused: object) -> list[Commit]:
        done.extend(commit.key for commit in commits)
        return []

    def subscribe(notice: Any, kinds: Any) -> Any:
        return lambda: None

    def first(view: Any, kinds: Any) -> Any:
        return ()

    monkeypatch.setattr("weft.controllers.loop.whole", first)
    monkeypatch.setattr(Queue, "take", take_first(["good", "bad", "fine"]))
    term = SimpleNamespace(cache=SimpleNamespace(view=None, subscribe=subscribe), clock=clock, perform=perform)
    running = asyncio.ensure_future(run_controller(broken, cast(Any, term)))
    for _ in range(600):  # a minute
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(0.1)
    running.cancel()
    assert sorted(done) == ["fine", "good"]
    assert 5 < sum("bad" in keys for keys in broken.asked) < 30


def take_first(keys: list[str]) -> Any:
    """``Queue.take``, of a queue that begins with these keys."""
    real, begun = Queue.take, set[int]()

    async def take(self: Queue, most: int) -> list[str]:
        if id(self) not in begun:
            begun.add(id(self))
            self.add(keys)
        return await real(self, most)

    return take
