"""Each policy chooses as its name says, from what nodes are and hold; combined ones weigh what each of them says."""

from __future__ import annotations

import pytest

from weft.contracts.policy import Datum, GpuAsk, Occasion, Request, SoftTerm, Spread
from weft.kinds.fields.strategy import SERVERLESS_STRATEGY, STRATEGIES
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.policies import POLICIES
from weft.scheduler.table.facts import Gpu, Load
from weft.scheduler.table.rows import Rows
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

GIB = 1024**3


def node(name: str, cpu: int = 8, memory: int = 16, **more: object) -> NodeFacts:
    return NodeFacts(
        uid=f"uid-{name}",
        name=name,
        capacity=(cpu * 1000, memory * GIB, 100 * GIB),
        online=True,
        cordoned=bool(more.pop("cordoned", False)),
        machines=frozenset({"q35"}),
        **more,  # type: ignore[arg-type]
    )


def ask(strategy: str, cpu: float = 1, memory: float = 1, **more: object) -> Request:
    return Request((round(cpu * 1000), round(memory * GIB), GIB), "q35", strategy, **more)  # type: ignore[arg-type]


def make(*nodes: NodeFacts) -> Snapshot:
    snapshot = Snapshot()
    for one in nodes:
        snapshot.put_node(one)
    return snapshot


def put(snapshot: Snapshot, node: str, cpu: float = 1, memory: float = 1, *groups: str) -> None:
    number = len(snapshot.log)
    snapshot.put_allocation(
        f"a{number}", f"uid-{node}", (round(cpu * 1000), round(memory * GIB), 0), Load(groups=groups)
    )


def choice(snapshot: Snapshot, request: Request) -> str:
    row = Engine(snapshot).choose(request, "vm1")
    assert row is not None
    return snapshot.names[row]


def test_resource_balance_evens_out_what_is_used() -> None:
    snapshot = make(node("n1"), node("n2"))
    put(snapshot, "n1", cpu=4, memory=1)  # short of cpu: memory is what it should give next
    put(snapshot, "n2", cpu=1, memory=8)
    assert choice(snapshot, ask("resource_balance", cpu=0.5, memory=6)) == "n1"
    assert choice(snapshot, ask("resource_balance", cpu=3, memory=0.5)) == "n2"


def test_resource_balance_counts_gpus_where_there_are_any() -> None:
    snapshot = make(node("gpu", gpus=(Gpu("T4", 16 * GIB),)), node("plain"))
    for name in ("gpu", "plain"):
        put(snapshot, name, cpu=4, memory=8)
    # Evenly used on both but for the GPU, of which nothing is in use.
    assert choice(snapshot, ask("resource_balance")) == "plain"
    assert choice(snapshot, ask("resource_balance", gpus=GpuAsk(1))) == "gpu"


def test_data_locality_follows_the_bytes() -> None:
    snapshot = make(
        node("n1"),
        node("n2", data=frozenset({"volume:v1"})),
        node("n3", data=frozenset({"image:i1", "volume:v2"})),
    )
    data = (Datum("volume:v1", 5 * GIB), Datum("image:i1", GIB))
    assert choice(snapshot, ask("data_locality", data=data)) == "n2"
    assert choice(snapshot, ask("data_locality", data=(*data, Datum("volume:v2", 5 * GIB)))) == "n3"
    snapshot.put_node(node("n2"))  # the volume has moved
    snapshot.put_node(node("n1", data=frozenset({"volume:v1"})))
    assert choice(snapshot, ask("data_locality", data=data)) == "n1"


def test_among_equals_the_one_with_most_left_is_taken() -> None:
    for strategy in ("data_locality", "network_proximity", "cost", "topology_spread"):
        snapshot = make(node("n1"), node("n2"), node("n3"))
        put(snapshot, "n1", cpu=2)
        put(snapshot, "n3", cpu=1)
        assert choice(snapshot, ask(strategy)) == "n2", strategy


def test_network_proximity_is_near_the_caller() -> None:
    trips = {"uid-n2": 2.0, "uid-n3": 80.0}
    snapshot = make(node("n1", round_trips=trips), node("n2"), node("n3"))
    assert choice(snapshot, ask("network_proximity", caller="uid-n1")) == "n1"
    put(snapshot, "n1", cpu=8)
    assert choice(snapshot, ask("network_proximity", caller="uid-n1")) == "n2"
    snapshot.put_node(node("n1", round_trips={"uid-n2": 80.0, "uid-n3": 2.0}))
    assert choice(snapshot, ask("network_proximity", caller="uid-n1")) == "n3"


def test_network_proximity_is_near_its_group_and_its_volumes() -> None:
    snapshot = make(
        node("n1", coordinate=(0.0, 0.0, 0.1)),
        node("n2", coordinate=(40.0, 0.0, 0.1)),
        node("n3", coordinate=(41.0, 0.0, 0.1), data=frozenset({"volume:v"})),
    )
    put(snapshot, "n2", 8, 1, "default/web")
    assert choice(snapshot, ask("network_proximity", groups=("default/web",))) == "n3"
    assert choice(snapshot, ask("network_proximity", leans=(SoftTerm("near", "default/web"),))) == "n3"
    assert choice(snapshot, ask("network_proximity", data=(Datum("volume:v"),))) == "n3"
    assert choice(snapshot, ask("network_proximity")) == "n1"


def test_where_no_round_trip_is_known_the_same_zone_is_nearer() -> None:
    snapshot = make(node("n1", texts={"zone": "a"}), node("n2", texts={"zone": "b"}), node("n3", texts={"zone": "b"}))
    put(snapshot, "n3", 8, 1)
    assert choice(snapshot, ask("network_proximity", caller="uid-n3")) == "n2"


def test_cost_takes_the_cheapest_that_fits_and_those_without_a_price_last() -> None:
    snapshot = make(node("n1"), node("n2", numbers={"cost": 0.30}), node("n3", numbers={"cost": 0.29}))
    put(snapshot, "n3", cpu=4)  # nearly as cheap, and full: it is still the cheapest
    assert choice(snapshot, ask("cost")) == "n3"
    assert choice(snapshot, ask("cost", cpu=6)) == "n2"
    put(snapshot, "n2", cpu=8)
    assert choice(snapshot, ask("cost", cpu=6)) == "n1"
    snapshot.put_node(node("n4", numbers={"cost": 0.0}))
    assert choice(snapshot, ask("cost")) == "n4"


def test_topology_spread_goes_where_the_fewest_of_the_group_are() -> None:
    snapshot = make(*(node(f"n{i}", texts={"zone": "ab"[i % 2], "rack": f"r{i}"}) for i in range(4)))
    group = ("default/web",)
    put(snapshot, "n0", 1, 1, *group)
    assert choice(snapshot, ask("topology_spread", groups=group)) == "n1"
    put(snapshot, "n1", 1, 1, *group)
    put(snapshot, "n2", 4, 1)
    assert choice(snapshot, ask("topology_spread=rack", groups=group)) == "n3"
    assert choice(snapshot, ask("topology_spread", spread=(Spread("rack", 1, "default/web"),))) == "n3"


def test_topology_spread_bears_as_many_more_as_its_skew() -> None:
    snapshot = make(node("n1", cpu=64, texts={"zone": "a"}), node("n2", texts={"zone": "b"}))
    for count, chosen in ((0, "n1"), (1, "n1"), (2, "n2")):
        assert choice(snapshot, ask("topology_spread=zone/2", groups=("p/g",))) == chosen, count
        put(snapshot, "n1", 1, 1, "p/g")


def test_topology_spread_leaves_domains_out_that_take_nothing() -> None:
    snapshot = make(
        node("n1", texts={"zone": "a"}), node("n2", texts={"zone": "b"}), node("n3", texts={"zone": "c"}, cordoned=True)
    )
    put(snapshot, "n1", 1, 1, "p/g")
    put(snapshot, "n2", 1, 1, "p/g")
    engine = Engine(snapshot)
    scores = engine.scores(ask("topology_spread=zone", groups=("p/g",)), "vm1")
    assert scores[0] > 99.0 and scores[2] < 0.0


def test_hardware_match_keeps_gpus_for_those_who_need_them() -> None:
    snapshot = make(
        node("n1", gpus=(Gpu("A100", 80 * GIB),)), node("n2"), node("n3", gpus=(Gpu("T4", 16 * GIB),), memory=64)
    )
    assert choice(snapshot, ask("hardware_match", cpu=1, memory=2)) == "n2"
    assert choice(snapshot, ask("hardware_match", gpus=GpuAsk(1, memory=16 * GIB), memory=8)) == "n3"
    assert choice(snapshot, ask("hardware_match", cpu=1, memory=8, gpus=GpuAsk(1))) == "n3"


def test_what_is_combined_is_weighed_as_said() -> None:
    snapshot = make(node("n1", data=frozenset({"image:i"})), node("n2"))
    put(snapshot, "n1", cpu=4, memory=8)
    data = (Datum("image:i", GIB),)
    assert choice(snapshot, ask("least_loaded", data=data)) == "n2"
    assert choice(snapshot, ask("least_loaded:0.1,data_locality:0.9", data=data)) == "n1"
    assert choice(snapshot, ask("least_loaded:0.9,data_locality:0.1", data=data)) == "n2"
    request = ask("least_loaded:3,data_locality:1", data=data)
    engine = Engine(snapshot)
    columns = engine.terms(request, "vm1", [0, 1])
    assert [(column.name, column.weight) for column in columns] == [("least_loaded", 0.75), ("data_locality", 0.25)]
    assert engine.scores(request, "vm1")[0] == pytest.approx(sum(c.weight * c.values[0] for c in columns))


@pytest.mark.parametrize("strategy", [*STRATEGIES, SERVERLESS_STRATEGY, "cost,best_fit"])
def test_values_lie_between_0_and_100_and_weights_come_to_1(strategy: str) -> None:
    snapshot = make(
        node("n1", numbers={"cost": 3.0}, texts={"zone": "a"}, gpus=(Gpu("T4", 16 * GIB),)),
        node("n2", cpu=0, memory=0, numbers={"cost": 0.0}),
        node("n3", data=frozenset({"volume:v"}), round_trips={"uid-n1": 1e9}),
    )
    put(snapshot, "n1", 20, 40, "p/g")  # more than there is: it may have shrunk
    request = ask(
        strategy, data=(Datum("volume:v", 5),), caller="uid-n1", groups=("p/g",), spread=(Spread("zone", 1, "p/g"),)
    )
    columns = POLICIES[strategy].terms(snapshot, request, Occasion(0, "vm1", None))
    assert sum(column.weight for column in columns) == pytest.approx(1.0)
    for column in columns:
        assert column.values.shape == (3,) and (column.values >= 0.0).all() and (column.values <= 100.0).all(), column


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if POLICIES[name].reads in ("facts", "row")])
def test_what_is_kept_by_row_does_not_depend_on_the_rows_beside_it(strategy: str) -> None:
    snapshot = make(*(node(f"n{i}", cpu=4 + i, memory=9 + 5 * i, data=frozenset({f"d{i % 3}"})) for i in range(9)))
    put(snapshot, "n4", 2, 3)
    request = ask(strategy, data=(Datum("d1", 7), Datum("d2", 3)))
    whole = POLICIES[strategy].terms(snapshot, request, Occasion(0, "vm1", None))
    some = POLICIES[strategy].terms(Rows(snapshot, [7, 4, 1]), request, Occasion(0, "vm1", None))
    for one, other in zip(whole, some, strict=True):
        assert (one.values[[7, 4, 1]] == other.values).all()
