"""The calendar of all nodes answers as one that tries every moment, whatever came and went."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.lease.calendar import Calendar, CalendarEntry
from weft.scheduler.table.facts import NodeFacts
from weft.scheduler.table.snapshot import Snapshot

NODES = ["a", "b", "c", "d"]
CAPACITY = (8, 8)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 11),  # key
        st.sampled_from(NODES),
        st.integers(0, 20),  # start
        st.one_of(st.integers(1, 8), st.just(None)),  # length, None: it never ends
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=40,
)


def taken(leases: dict[str, CalendarEntry], node: str, at: float) -> tuple[int, int]:
    """What leases take of a node at one moment, summed up."""
    here = [
        one.amounts
        for one in leases.values()
        if one.node_uid == node and any(start <= at < end for start, end in one.stretches)
    ]
    return sum(one[0] for one in here), sum(one[1] for one in here)


def list_moments(leases: dict[str, CalendarEntry]) -> set[float]:
    return {at for one in leases.values() for stretch in one.stretches for at in stretch}


def find_start(
    leases: dict[str, CalendarEntry],
    node: str,
    left: tuple[int, int],
    amounts: tuple[int, int],
    earliest: float,
    seconds: float,
) -> float:
    """The first of all moments at which something changes from which ``amounts`` are free, by trying each."""
    moments = sorted({earliest, *(at for at in list_moments(leases) if at > earliest)})

    def free(at: float) -> bool:
        used = taken(leases, node, at)
        return all(not a or u + a <= n for u, a, n in zip(used, amounts, left, strict=True))

    for begin in (at for at in moments if at < math.inf):
        inside = [begin, *(at for at in moments if begin < at < begin + seconds)]
        if all(free(at) for at in inside):
            return begin
    return math.inf


@settings(max_examples=examples(150), deadline=None)
@given(CHANGES, st.integers(0, 6), st.integers(0, 6), st.integers(0, 22), st.integers(1, 9))
def test_it_finds_the_first_moment_on_every_node(
    changes: list[tuple[int, str, int, int | None, int, int]], cpu: int, memory: int, earliest: int, seconds: int
) -> None:
    calendar, leases = Calendar(), dict[str, CalendarEntry]()
    for number, node, start, length, more_cpu, more_memory in changes:
        key = str(number)
        if key in leases and (number + start) % 3 == 0:
            calendar.drop(key)
            del leases[key]
            continue
        end = math.inf if length is None else float(start + length)
        later = ((end + 2.0, end + 5.0), (end + 6.0, end + 9.0)) if length is not None and start % 2 else ()
        leases[key] = CalendarEntry(node, float(start), end, (more_cpu, more_memory), later)
        calendar.put(key, leases[key])
    left = np.array([[CAPACITY[0]] * 3 + [2], [CAPACITY[1]] * 3 + [8]], dtype=np.int64)
    starts = calendar.find_starts(NODES, left, (cpu, memory), float(earliest), float(seconds))
    lengths = calendar.find_lengths(NODES, left, (cpu, memory), float(earliest))
    for row, node in enumerate(NODES):
        here = (int(left[0, row]), int(left[1, row]))
        assert starts[row] == find_start(leases, node, here, (cpu, memory), float(earliest), float(seconds))
        assert (lengths[row] >= seconds) == (starts[row] == earliest)
        peaks = [taken(leases, node, at) for at in list_moments(leases)] or [(0, 0)]
        assert calendar.find_peak(node) == (max(one[0] for one in peaks), max(one[1] for one in peaks))


def test_what_has_ended_is_named_once() -> None:
    calendar = Calendar()
    calendar.put("x", CalendarEntry("a", 0.0, 10.0, (1, 1)))
    calendar.put("y", CalendarEntry("a", 0.0, 20.0, (1, 1)))
    calendar.put("y", CalendarEntry("a", 0.0, 30.0, (1, 1)))  # extended
    assert calendar.find_next_end() == 10.0
    assert calendar.take_over(25.0) == ["x"]
    assert calendar.take_over(25.0) == []
    assert calendar.take_over(30.0) == ["y"]
    assert calendar.find_next_end() == math.inf


def node(uid: str) -> NodeFacts:
    return NodeFacts(uid=uid, name=uid, capacity=(8000, 64, 1000), online=True, cordoned=False, machines=frozenset())


def test_requests_without_an_end_see_the_most_that_leases_ever_take() -> None:
    snapshot = Snapshot()
    snapshot.put_node(node("a"))
    snapshot.put_leased("x", CalendarEntry("a", 100.0, 200.0, (3000, 8)), 50)
    snapshot.put_leased("y", CalendarEntry("a", 200.0, 300.0, (5000, 4)), 50)  # after x: never both
    assert snapshot.free[:, 0].tolist() == [3000, 56, 900]
    assert snapshot.left_for_leases()[:, 0].tolist() == [8000, 64]
    snapshot.put_leased("x", CalendarEntry("a", 100.0, 250.0, (3000, 8)), 50)  # extended into y
    assert snapshot.free[:, 0].tolist() == [0, 52, 900]
    snapshot.drop_allocation("y")
    assert snapshot.free[:, 0].tolist() == [5000, 56, 950]
    snapshot.put_allocation("x", "a", (0, 0, 50))  # its lease is over: the disk stays
    assert snapshot.free[:, 0].tolist() == [8000, 64, 950]
    snapshot.drop_allocation("x")
    assert snapshot.free[:, 0].tolist() == [8000, 64, 1000]


def test_nodes_that_come_and_go_keep_their_leases_apart() -> None:
    snapshot = Snapshot()
    snapshot.put_leased("early", CalendarEntry("c", 0.0, 10.0, (1000, 1)), 0)  # before its node is known
    for uid in ("c", "a", "b", *(f"x{number}" for number in range(30))):
        snapshot.put_node(node(uid))
        snapshot.settle()
    snapshot.put_leased("late", CalendarEntry("b", 0.0, 10.0, (2000, 2)), 0)
    snapshot.drop_node("a")
    snapshot.settle()
    left = snapshot.left_for_leases()
    assert left.min() == 64 and (left[0] == 8000).all() and (left[1] == 64).all()
    free = {uid: snapshot.free[:2, row].tolist() for row, uid in enumerate(snapshot.uids)}
    assert free["b"] == [6000, 62] and free["c"] == [7000, 63] and free["x7"] == [8000, 64]
