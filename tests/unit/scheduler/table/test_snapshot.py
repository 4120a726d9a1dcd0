"""The snapshot's arithmetic: whatever happened, it is what one built anew would be."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.kinds.allocation import Resources
from weft.scheduler.table.snapshot import Amounts, Gpu, Load, NodeFacts, Snapshot, amounts_of, state_of

NODES = [f"u{n}" for n in range(5)]
MODELS = ["A100", "T4"]
amounts = st.tuples(st.integers(0, 4000), st.integers(0, 2**40), st.integers(0, 2**40))
loads = st.builds(
    Load,
    extras=st.sampled_from([(), (("sriov", 1),), (("fpga", 2), ("sriov", 3))]),
    gpus=st.sampled_from([(), ((0, 1000),), ((0, 1000), (2, 1000)), ((1, 300),)]),
    groups=st.sampled_from([(), ("p/web",), ("p/db", "p/web")]),
)
nodes_ = st.builds(
    NodeFacts,
    uid=st.sampled_from(NODES),
    name=st.just(""),
    capacity=amounts,
    online=st.booleans(),
    cordoned=st.booleans(),
    machines=st.just(frozenset({"q35"})),
    overcommit=st.sampled_from([{}, {}, {"cpu": 2.5, "sriov": 2.0}]),
    texts=st.sampled_from([{}, {"zone": "a"}, {"zone": "b", "speed": "10G"}]),
    numbers=st.sampled_from([{}, {"cost": 0.5}]),
    extras=st.sampled_from([{}, {"sriov": 4}]),
    gpus=st.lists(st.builds(Gpu, model=st.sampled_from(MODELS), memory=st.just(2**34)), max_size=3).map(tuple),
    taints=st.sampled_from([frozenset(), frozenset({"edge"})]),
    data=st.sampled_from([frozenset(), frozenset({"image:1"}), frozenset({"image:1", "pool:p"})]),
)
steps = st.one_of(
    st.tuples(st.just("node"), nodes_),
    st.tuples(st.just("drop node"), st.sampled_from(NODES)),
    st.tuples(st.just("allocation"), st.integers(0, 8), st.sampled_from(NODES), amounts, loads),
    st.tuples(st.just("drop allocation"), st.integers(0, 8)),
    st.tuples(st.just("settle")),
)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(steps, max_size=40))
def test_increments_equal_a_rebuild(history: list[tuple]) -> None:  # type: ignore[type-arg]
    snapshot = Snapshot()
    nodes: dict[str, NodeFacts] = {}
    allocations: dict[str, tuple[str, Amounts, Load]] = {}
    for step in history:
        snapshot.text("zone"), snapshot.number("speed")  # from now on kept up to date
        match step:
            case ("node", facts):
                nodes[facts.uid] = msgspec.structs.replace(facts, name=f"name-{facts.uid}")
                snapshot.put_node(nodes[facts.uid])
            case ("drop node", uid):
                nodes.pop(uid, None)
                snapshot.drop_node(uid)
            case ("allocation", number, uid, taken, load):
                allocations[f"a{number}"] = (uid, taken, load)
                snapshot.put_allocation(f"a{number}", uid, taken, load)
            case ("settle",):
                snapshot.settle()
                assert snapshot.names == sorted(snapshot.names)
            case ("drop allocation", number):
                allocations.pop(f"a{number}", None)
                snapshot.drop_allocation(f"a{number}")
    rebuilt = Snapshot()
    for name, (uid, taken, load) in allocations.items():  # in the other order: allocations before their nodes
        rebuilt.put_allocation(name, uid, taken, load)
    for facts in nodes.values():
        rebuilt.put_node(facts)
    assert state_of(snapshot) == state_of(rebuilt)
    assert len(snapshot) == len(nodes)
    for index, (name, uid) in enumerate(zip(snapshot.names, snapshot.uids, strict=True)):
        facts = nodes[uid]
        assert facts.name == name
        assert tuple(snapshot.capacity[:, index]) == facts.given()
        assert (snapshot.online[index], snapshot.cordoned[index]) == (facts.online, facts.cordoned)
        assert {name for name, flags in snapshot.taints() if flags[index]} == facts.taints
        here = [(taken, load) for at, taken, load in allocations.values() if at == uid]
        assert snapshot.allocated[0, index] == sum(taken[0] for taken, _ in here)
        assert snapshot.extra("sriov")[0][index] == facts.given_extra("sriov")
        assert snapshot.extra("sriov")[1][index] == sum(dict(load.extras).get("sriov", 0) for _, load in here)
        free = [1000 - sum(dict(load.gpus).get(device, 0) for _, load in here) for device in range(len(facts.gpus))]
        assert snapshot.gpu_free[index].tolist() == free + [-1] * (snapshot.gpu_free.shape[1] - len(free))
        assert [m for code in snapshot.gpu_model.codes[index] for m in snapshot.gpu_model.words[code : code + 1]] == [
            gpu.model for gpu in facts.gpus
        ]
        assert snapshot.members("p/web")[index] == sum("p/web" in load.groups for _, load in here)
        assert snapshot.holds("image:1")[index] == ("image:1" in facts.data)
        zone, speed = snapshot.text("zone"), snapshot.number("speed")
        assert (zone is not None and zone.words[zone.codes[index]] if "zone" in facts.texts else False) == (
            facts.texts.get("zone", False)
        )
        assert (speed is not None and speed[index] == 10 * 2**30) == ("speed" in facts.texts)
    assert [snapshot.names[i] for i in snapshot.rank.argsort()] == sorted(snapshot.names)
    for uid in nodes:
        row = snapshot.index_of(uid)
        assert row is not None and snapshot.uids[row] == uid
    assert snapshot.names == sorted(snapshot.names)


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


def test_round_trips_follow_from_coordinates_unless_they_were_measured() -> None:
    snapshot = Snapshot()
    for name, at, direct in (
        ("a", (0.0, 0.0, 1.0), {}),
        ("b", (3.0, 4.0, 2.0), {"c": 9.0}),
        ("c", (), {}),
        ("d", (), {}),
    ):
        snapshot.put_node(NodeFacts(name, name, (0, 0, 0), True, False, frozenset(), coordinate=at, round_trips=direct))
    assert snapshot.distance("a").tolist()[:2] == [0.0, 8.0] and np.isnan(snapshot.distance("a")[2:]).all()
    assert snapshot.distance("c")[1] == snapshot.distance("b")[2] == 9.0


def test_attributes_are_read_as_text_and_as_number() -> None:
    snapshot = Snapshot()
    facts = NodeFacts("u", "n", (4000, 2**34, 0), True, False, frozenset(), texts={"zone": "a", "nics": "2"})
    snapshot.put_node(msgspec.structs.replace(facts, extras={"fpga": 3}, gpus=(Gpu("T4", 2**34), Gpu("T4", 2**34))))
    snapshot.put_node(NodeFacts("v", "m", (1000, 2**30, 0), True, False, frozenset()))
    snapshot.put_allocation("a", "u", (1500, 2**30, 0), Load(extras=(("fpga", 1),), gpus=((1, 400),)))
    numbers = {
        "cpu": 4,
        "cpu.free": 2.5,
        "memory.free": 15 * 2**30,
        "gpu": 2,
        "gpu.free": 1.6,
        "fpga": 3,
        "fpga.free": 2,
        "nics": 2,
    }
    for attribute, value in numbers.items():
        column = snapshot.number(attribute)
        assert column is not None and column[0] == value, attribute
    zone, model = snapshot.text("zone"), snapshot.text("gpu.model")
    assert zone is not None and zone.equal("a").tolist() == [True, False]
    assert model is not None and model.equal("T4").tolist() == [True, False]
    assert snapshot.text("tpm") is None and snapshot.number("tpm") is None and snapshot.number("zone") is None
