from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.table.facts import Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot, state_of

NODES = ("a", "b")
STEP = st.tuples(
    st.sampled_from(["put", "lease", "drop", "alone", "rest", "revert", "inner"]),
    st.integers(0, 4),
    st.sampled_from(NODES),
    st.integers(1, 9),
)


def make_snapshot() -> Snapshot:
    snapshot = Snapshot()
    for name in NODES:
        snapshot.put_node(
            NodeFacts(
                uid=name, name=name, capacity=(1000, 1000, 1000), online=True, cordoned=False, machines=frozenset()
            )
        )
    snapshot.put_allocation("x0", "a", (10, 10, 10), Load(groups=("web",), workload="vm/x0"))
    snapshot.put_leased("x1", CalendarEntry("b", 5.0, 9.0, (20, 20)), 3)
    snapshot.put_allocation("x2", "gone", (1, 1, 1))
    snapshot.improved.clear()
    return snapshot


def see(snapshot: Snapshot) -> object:
    leases = [snapshot.leases.get(f"x{number}") for number in range(5)]
    return state_of(snapshot), leases, snapshot.left_for_leases().tolist(), set(snapshot.improved)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(STEP, max_size=12))
def test_after_a_trial_the_snapshot_is_as_it_was_whatever_was_tried(steps: list[tuple[str, int, str, int]]) -> None:
    snapshot = make_snapshot()
    before = see(snapshot)
    with snapshot.trial() as trial:
        tried = set[str]()
        for what, number, node, size in steps:
            name = f"x{number}"
            if what == "put":
                trial.put(name, node, (size, size, size))
            elif what == "lease":
                trial.put_leased(name, CalendarEntry(node, 1.0, 2.0 + size, (size, size)), size)
            elif what == "drop":
                trial.drop(name)
            elif what == "alone":
                trial.keep_capacity([name])
            elif what == "rest":
                trial.rest([name])
            elif what == "revert" and name in tried:
                trial.revert(name)
                tried.discard(name)
            elif what == "inner":
                now = see(snapshot)
                with snapshot.trial() as inner:
                    inner.drop(name)
                    inner.put(name, node, (size, 0, 0))
                assert see(snapshot) == now
            if what in ("put", "lease"):
                tried.add(name)
    assert see(snapshot) == before


def test_what_a_trial_keeps_lasts() -> None:
    snapshot = make_snapshot()
    with snapshot.trial() as trial:
        trial.put("x3", "a", (5, 5, 5))
        trial.keep()
        trial.put("x4", "a", (7, 7, 7))
    assert snapshot.allocated[:, snapshot.index_of("a")].tolist() == [15, 15, 15]
