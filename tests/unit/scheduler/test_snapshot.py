"""The snapshot's arithmetic: whatever happened, it is what one built anew would be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from weft.kinds.allocation import Resources
from weft.scheduler.snapshot import Amounts, NodeFacts, Snapshot, amounts_of

NODES = [f"u{n}" for n in range(5)]
amounts = st.tuples(st.integers(0, 4000), st.integers(0, 2**40), st.integers(0, 2**40))
steps = st.one_of(
    st.tuples(st.just("node"), st.sampled_from(NODES), amounts, st.booleans(), st.booleans()),
    st.tuples(st.just("drop node"), st.sampled_from(NODES)),
    st.tuples(st.just("allocation"), st.integers(0, 8), st.sampled_from(NODES), amounts),
    st.tuples(st.just("drop allocation"), st.integers(0, 8)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40))
def test_increments_equal_a_rebuild(history: list[tuple]) -> None:  # type: ignore[type-arg]
    snapshot = Snapshot()
    nodes: dict[str, NodeFacts] = {}
    allocations: dict[str, tuple[str, Amounts]] = {}
    for step in history:
        match step:
            case ("node", uid, capacity, online, cordoned):
                nodes[uid] = NodeFacts(uid, f"name-{uid}", capacity, online, cordoned, frozenset({"q35"}))
                snapshot.put_node(nodes[uid])
            case ("drop node", uid):
                nodes.pop(uid, None)
                snapshot.drop_node(uid)
            case ("allocation", number, uid, taken):
                allocations[f"a{number}"] = (uid, taken)
                snapshot.put_allocation(f"a{number}", uid, taken)
            case ("drop allocation", number):
                allocations.pop(f"a{number}", None)
                snapshot.drop_allocation(f"a{number}")
    rebuilt = Snapshot()
    for name, (uid, taken) in allocations.items():  # in the other order: allocations before their nodes
        rebuilt.put_allocation(name, uid, taken)
    for facts in nodes.values():
        rebuilt.put_node(facts)
    assert snapshot.state() == rebuilt.state()
    assert len(snapshot) == len(nodes)
    for index, (name, uid) in enumerate(zip(snapshot.names, snapshot.uids, strict=True)):
        assert snapshot.index_of(uid) == index and nodes[uid].name == name
        assert tuple(snapshot.capacity[:, index]) == nodes[uid].capacity
        assert (snapshot.online[index], snapshot.cordoned[index]) == (nodes[uid].online, nodes[uid].cordoned)
    assert [snapshot.names[i] for i in snapshot.rank.argsort()] == sorted(snapshot.names)


def test_it_holds_more_nodes_than_it_began_with() -> None:
    snapshot = Snapshot()
    for number in range(100):
        snapshot.put_node(NodeFacts(f"u{number}", f"n{number}", (number, 0, 0), True, False, frozenset({"microvm"})))
    assert snapshot.capacity[0].tolist() == list(range(100))
    assert snapshot.machine("microvm").all() and not snapshot.machine("q35").any()


def test_fractions_of_a_core_add_up_exactly() -> None:
    snapshot = Snapshot()
    snapshot.put_node(NodeFacts("u", "n", (1000, 0, 0), True, False, frozenset()))
    for number in range(10):
        snapshot.put_allocation(f"a{number}", "u", amounts_of(Resources(cpu=0.1)))
    assert snapshot.allocated[0, 0] == 1000


def test_a_node_that_gains_room_is_noticed_and_one_that_loses_it_is_not() -> None:
    snapshot = Snapshot()
    snapshot.put_node(NodeFacts("u", "n", (1000, 0, 0), True, False, frozenset()))
    assert snapshot.improved == {"u"}
    snapshot.improved.clear()
    snapshot.put_allocation("a", "u", (500, 0, 0))
    assert not snapshot.improved
    snapshot.drop_allocation("a")
    assert snapshot.improved == {"u"}
