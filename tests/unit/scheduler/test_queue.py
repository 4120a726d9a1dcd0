"""Who waits, and who is woken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.policy import Request
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.queue.lanes import Queue
from weft.scheduler.queue.turn import AT_ONCE, PATIENT, QueuePosition

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
    assert sorted(queue.take(10)) == ["a", "b"] and not queue.ready


def test_a_forgotten_one_is_not_taken() -> None:
    queue = Queue()
    queue.refuse("a", BIG, NO)
    queue.offer("b")
    queue.forget("a")
    queue.forget("b")
    assert not queue.ready and len(queue) == 0 and queue.verdict(BIG) is None
    queue.wake(BIG)
    assert queue.take(10) == []


def test_a_higher_level_comes_first_and_of_one_level_the_longest_waiting_whether_new_or_refused() -> None:
    queue = Queue()
    queue.offer("later", QueuePosition(0.0, "", 30.0))
    queue.offer("refused", QueuePosition(0.0, "", 10.0))
    queue.offer("dear", QueuePosition(5.0, "", 40.0))
    assert queue.take(1) == ["dear"] and queue.take(1) == ["refused"]
    queue.refuse("refused", BIG, NO)
    queue.offer("first", QueuePosition(0.0, "", 5.0))
    queue.offer("now", QueuePosition(AT_ONCE, "", 50.0))
    queue.offer("old", QueuePosition(PATIENT, "", 1.0))
    queue.wake(BIG)
    assert queue.take(10) == ["old", "now", "first", "refused", "later"] and not queue.ready


def test_who_is_refused_again_keeps_its_turn() -> None:
    """One place becomes free at a time: the longest waiting gets it each time."""
    queue = Queue()
    for number in range(1000):
        queue.offer(f"v{number:03}", QueuePosition(0.0, "", float(number)))
    while queue.ready:
        for key in queue.take(99):
            queue.refuse(key, BIG, NO)
    for turn in range(300):
        queue.wake(BIG)
        placed, *others = queue.take(99)
        assert placed == f"v{turn:03}"
        for key in others:
            queue.refuse(key, BIG, NO)
        assert len(queue) == 999 - turn and not queue.ready


def test_of_two_woken_classes_the_longest_waiting_come_first() -> None:
    queue = Queue()
    for number in range(6):
        queue.offer(f"v{number}", QueuePosition(0.0, "", float(number)))
    for key in queue.take(6):
        queue.refuse(key, BIG if int(key[1]) % 2 else HUGE, NO)
    queue.wake(BIG)
    queue.wake(HUGE)
    assert queue.take(4) == ["v0", "v1", "v2", "v3"]
    queue.refuse("v3", BIG, NO)  # and so the rest of this class sleeps
    assert queue.take(4) == ["v4"] and not queue.ready and len(queue) == 2


def test_who_has_waited_long_when_its_class_is_woken_comes_before_higher_levels() -> None:
    queue = Queue()
    for key, level, since in (("old", 0.0, 10.0), ("new", 0.0, 90.0), ("dear", 7.0, 95.0)):
        queue.offer(key, QueuePosition(level, "", since))
        queue.take(1)
        queue.refuse(key, BIG, NO)
    queue.wake(BIG, patient=50.0)
    assert queue.take(10) == ["old", "dear", "new"]


REQUESTS = [BIG, HUGE, Request((1, 0, 0), "q35", "least_loaded")]
Op = tuple[str, int, int]


@given(st.lists(st.tuples(st.sampled_from(("offer", "forget", "wake", "take")), st.integers(0, 30), st.integers(0, 3))))
def test_it_does_as_a_sorted_list_would(ops: list[Op]) -> None:
    """Each that is taken is placed if its number and the time are both even, else refused in one of three classes."""
    queue, ready, asleep = Queue(), dict[str, tuple[float, float, str]](), dict[str, tuple[float, float, str]]()
    for op, number, size in ops:
        key, request = f"v{number:02}", REQUESTS[number % 3]
        if op == "offer":
            rank = (-float(number % 2), float(number * 7 % 11), key)
            queue.offer(key, QueuePosition(-rank[0], "", rank[1]))
            asleep.pop(key, None)
            ready[key] = rank
        elif op == "forget":
            queue.forget(key)
            ready.pop(key, None)
            asleep.pop(key, None)
        elif op == "wake":
            queue.wake(request)
            woken = {name: rank for name, rank in asleep.items() if int(name[1:]) % 3 == number % 3}
            asleep = {name: rank for name, rank in asleep.items() if name not in woken}
            ready |= woken
        else:
            taken = queue.take(size + 1)
            assert taken == sorted(ready, key=ready.__getitem__)[: size + 1]
            ranks = {name: ready.pop(name) for name in taken}
            for name in taken:
                if (int(name[1:]) + number) % 2:
                    mine = REQUESTS[int(name[1:]) % 3]
                    refused_before = queue.verdict(mine) is not None
                    queue.refuse(name, mine, NO)
                    asleep[name] = ranks[name]
                    if not refused_before:  # the rest of its class, if that was awake, sleeps on; new ones don't
                        still = {n for n in ready if n in queue_classes(queue)}
                        asleep |= {n: ready.pop(n) for n in still}
        assert queue.ready == bool(ready) and len(queue) == len(ready) + len(asleep)


def queue_classes(queue: Queue) -> set[str]:
    """The keys of all classes that sleep."""
    return {key for key, lane in queue._lane_of.items() if lane.of is not None and not lane.of.awake}
