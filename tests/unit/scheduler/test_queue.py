"""Who waits, and who is woken."""

from __future__ import annotations

from weft.contracts.policy import Request
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.queue import Queue

BIG = Request((8000, 0, 0), "q35", "least_loaded")
HUGE = Request((9000, 0, 0), "q35", "least_loaded")
NO = Explanation(0, [], {}, "insufficientResources", "no room")


def test_those_who_came_first_are_first() -> None:
    queue = Queue()
    for key in ("a", "b", "c"):
        queue.offer(key)
    assert queue.take(2) == ["a", "b"] and queue.take(2) == ["c"] and not queue.ready


def test_a_class_shares_its_verdict_and_sleeps() -> None:
    queue = Queue()
    queue.refuse("a", BIG, NO)
    queue.refuse("b", BIG, NO)
    queue.refuse("c", HUGE, NO)
    assert queue.verdict(BIG) is NO and not queue.ready and len(queue) == 3
    queue.wake(BIG)
    assert queue.verdict(BIG) is None and queue.ready
    assert queue.take(10) == ["a", "b"] and not queue.ready


def test_what_a_woken_class_has_no_room_for_sleeps_on_together() -> None:
    queue = Queue()
    for number in range(5):
        queue.refuse(f"v{number}", BIG, NO)
    queue.wake(BIG)
    assert queue.take(2) == ["v0", "v1"]
    queue.refuse("v1", BIG, NO)  # the second found no room any more
    assert not queue.ready and len(queue) == 4
    queue.wake(BIG)
    assert sorted(queue.take(10)) == ["v1", "v2", "v3", "v4"]


def test_a_class_that_still_finds_room_goes_on() -> None:
    queue = Queue()
    for number in range(5):
        queue.refuse(f"v{number}", BIG, NO)
    queue.wake(BIG)
    taken = []
    while queue.ready:
        taken += queue.take(2)
    assert taken == [f"v{number}" for number in range(5)]


def test_one_that_changed_leaves_its_class() -> None:
    queue = Queue()
    queue.refuse("a", BIG, NO)
    queue.refuse("b", BIG, NO)
    queue.offer("a")
    queue.wake(BIG)
    assert queue.take(10) == ["b"] and queue.take(10) == ["a"]


def test_a_forgotten_one_is_not_taken() -> None:
    queue = Queue()
    queue.refuse("a", BIG, NO)
    queue.offer("b")
    queue.forget("a")
    queue.forget("b")
    assert not queue.ready and len(queue) == 0 and queue.verdict(BIG) is None
    queue.wake(BIG)
    assert queue.take(10) == []
