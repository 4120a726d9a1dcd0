"""Groups near and apart, spread, data: where they let a workload go, what they say, and that they hold in any order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import Datum, Request, SoftTerm
from weft.kinds.fields.affinity import HOST, SpreadTerm, read_group, read_spread
from weft.kinds.vm import VmSpec, check_vm
from weft.scheduler.constraint.affinity import depends_on, read_affinity
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.table.facts import Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot

GIB = 1024**3


class Fabric:
    """Nodes ``n0``, ``n1`` … (name, labels), on which VMs are placed one by one."""

    def __init__(self, *labels: dict[str, str], cpu: int = 16) -> None:
        self.snapshot = Snapshot()
        self.engine = Engine(self.snapshot)
        self.labels = labels
        for number in range(len(labels)):
            self.put_node(number, cpu=cpu)

    def put_node(
        self, number: int, *, cpu: int = 16, online: bool = True, cordoned: bool = False, data: Sequence[str] = ()
    ) -> None:
        self.snapshot.put_node(
            NodeFacts(
                uid=f"u{number}",
                name=f"n{number}",
                capacity=(cpu * 1000, 64 * GIB, 100 * GIB),
                online=online,
                cordoned=cordoned,
                machines=frozenset({"q35"}),
                texts=self.labels[number],
                data=frozenset(data),
            )
        )

    def ask(self, spec: VmSpec, project: str = "default", **more: object) -> Request:
        affinity = read_affinity(project, spec.affinity_groups, spec.anti_affinity_groups, spec.spread)
        return Request(
            amounts=(1000, GIB, GIB),
            machine="q35",
            strategy="best_fit",  # which would put all on one node
            node=spec.node,
            near=affinity.near,
            apart=affinity.apart,
            groups=affinity.groups,
            spread=affinity.spread,
            leans=more.pop("leans", affinity.leans),  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )

    def place(self, name: str, spec: VmSpec, project: str = "default") -> str | None:
        request = self.ask(spec, project)
        row = self.engine.choose(request, name)
        if row is None:
            return None
        load = Load(groups=request.groups, workload=f"vm/{name}")
        self.snapshot.put_allocation(name, self.snapshot.uids[row], request.amounts, load)
        return self.snapshot.names[row]

    def why(self, spec: VmSpec) -> dict[str, str]:
        """Node → why it is refused."""
        request = self.ask(spec)
        told = explain(self.engine, request, "new", self.engine.choose(request, "new"))
        return {verdict.node: verdict.reason for verdict in told.verdicts if verdict.outcome == "refused"}


def vm(
    near: Sequence[str] = (), apart: Sequence[str] = (), spread: Sequence[str] = (), node: str | None = None
) -> VmSpec:
    spec = VmSpec(
        image="tiny", affinity_groups=list(near), anti_affinity_groups=list(apart), spread=list(spread), node=node
    )
    check_vm(spec)
    return spec


def zones(*names: str) -> list[dict[str, str]]:
    return [{"zone": name} if name else {} for name in names]


def test_members_apart_take_a_node_each_and_the_one_too_many_is_told_who_is_in_the_way() -> None:
    fabric = Fabric({}, {})
    web = vm(apart=["webapp"])
    assert [fabric.place(f"web-{n}", web) for n in range(3)] == ["n0", "n1", None]
    assert fabric.why(web) == {
        "n0": "vm/web-0 of anti-affinity group webapp is there",
        "n1": "vm/web-1 of anti-affinity group webapp is there",
    }
    fabric.snapshot.drop_allocation("web-0")
    assert fabric.place("web-2", web) == "n0"


def test_members_near_lie_where_the_first_lies_even_if_others_are_better() -> None:
    fabric = Fabric({}, {}, {})
    fabric.place("filler", vm(node="n2"))
    assert fabric.place("a", vm(near=["pair"], node="n1")) == "n1"
    assert fabric.place("b", vm(near=["pair"])) == "n1"
    assert fabric.why(vm(near=["pair"]))["n0"] == "no member of affinity group pair is here: vm/a is on n1"
    assert fabric.place("c", vm(near=["other"])) == "n1"  # nobody is of that group: best_fit decides


def test_a_group_is_of_its_project() -> None:
    fabric = Fabric({})
    assert fabric.place("a", vm(apart=["web"]), "blue") == "n0"
    assert fabric.place("b", vm(apart=["web"]), "red") == "n0"


@pytest.mark.parametrize("database_first", [True, False])
def test_who_is_apart_from_a_group_shares_a_node_with_none_of_it_whoever_came_first(database_first: bool) -> None:
    fabric = Fabric({}, {})
    database, web = ("database", vm(apart=["webapp"])), ("web", vm(near=["webapp"]))
    placed = {name: fabric.place(name, spec) for name, spec in ([database, web] if database_first else [web, database])}
    assert sorted(filter(None, placed.values())) == ["n0", "n1"]
    assert fabric.place("web-2", web[1]) == placed["web"]


def test_a_preference_is_followed_while_it_can_be_and_stops_nobody() -> None:
    fabric = Fabric({}, {})
    web = vm(apart=["webapp:preferred"])
    assert [fabric.place(f"web-{n}", web) for n in range(3)] == ["n0", "n1", "n0"]
    fabric = Fabric({}, {}, {}, cpu=2)
    fabric.place("first", vm(near=["pair"], node="n2"))
    assert [fabric.place(f"p{n}", vm(near=["pair:preferred"])) for n in range(2)] == ["n2", "n0"]


def test_who_prefers_to_be_apart_leaves_alone_who_must_be() -> None:
    fabric = Fabric({})
    fabric.place("must", vm(apart=["webapp"]))
    assert fabric.place("wish", vm(apart=["webapp:preferred"])) is None
    assert fabric.place("near", vm(near=["webapp:preferred"])) is None
    told = {"n0": "vm/must, which must be apart from group webapp, is there"}
    assert fabric.why(vm(near=["webapp"])) == told


def test_a_spread_keeps_zones_level_and_says_which_is_ahead() -> None:
    fabric = Fabric(*zones("a", "a", "b", ""))
    web = vm(apart=["web:preferred"], spread=["zone"])
    where = [fabric.place(f"web-{n}", web) for n in range(4)]
    assert sorted(name in ("n0", "n1") for name in map(str, where)) == [False, False, True, True]
    assert "n3" not in where
    fabric.place("web-4", vm(apart=["web:preferred"], spread=["zone"], node="n2"))
    assert fabric.why(web) == {
        "n2": "zone b has 3 of group web, a has 2: one more would exceed the skew of 1",
        "n3": "has no zone to spread group web over",
    }


def test_a_skew_of_two_lets_one_zone_be_two_ahead() -> None:
    fabric = Fabric(*zones("a", "b"))
    fabric.snapshot.put_allocation("big", "u1", (16000, GIB, GIB))
    web = vm(apart=["web:preferred"], spread=["zone:2"])
    assert [fabric.place(f"web-{n}", web) for n in range(3)] == ["n0", "n0", None]


def test_a_full_zone_holds_up_a_spread_but_not_one_that_takes_nothing() -> None:
    fabric = Fabric(*zones("a", "b"))
    web = vm(apart=["web:preferred"], spread=["zone"])
    fabric.place("web-0", web)
    fabric.snapshot.put_allocation("big", "u1", (16000, GIB, GIB))
    assert fabric.place("web-1", web) is None
    fabric.put_node(1, cordoned=True)
    assert fabric.place("web-1", web) == "n0"
    fabric.put_node(1, online=False)
    assert fabric.place("web-2", web) == "n0"


def test_without_any_label_of_its_key_a_spread_refuses_all_and_a_preferred_one_nothing() -> None:
    fabric = Fabric({}, {})
    assert fabric.place("a", vm(apart=["web"], spread=["rack"])) is None
    assert fabric.why(vm(apart=["web"], spread=["rack"]))["n0"] == "has no rack to spread group web over"
    assert fabric.place("a", vm(apart=["web"], spread=["rack:preferred"])) == "n0"


def test_a_preferred_spread_takes_the_emptiest_zone_as_long_as_it_has_room() -> None:
    fabric = Fabric(*zones("a", "a", "b"), cpu=2)
    web = vm(apart=["web:preferred"], spread=["zone:preferred"])
    assert [fabric.place(f"web-{n}", web) for n in range(6)][:2] in (["n0", "n2"], ["n2", "n0"])
    assert fabric.snapshot.allocated[0].tolist() == [2000, 2000, 2000]


def test_data_draws_a_workload_and_required_data_binds_it() -> None:
    fabric = Fabric({}, {}, {})
    fabric.put_node(1, data=["pool:ceph-pool:raw-data"])
    datum = Datum("pool:ceph-pool:raw-data", 0, required=True)
    must = fabric.ask(vm(), data=(datum,))
    wish = fabric.ask(vm(), leans=(SoftTerm("data", datum.name),))
    assert fabric.engine.choose(must, "x") == fabric.engine.choose(wish, "x") == 1
    assert fabric.engine.choose(fabric.ask(vm()), "x") == 0
    told = explain(fabric.engine, must, "x", 1)
    assert {v.reason for v in told.verdicts if v.outcome == "refused"} == {"does not have ceph-pool:raw-data"}
    fabric.put_node(1, data=[])
    fabric.put_node(2, data=["pool:ceph-pool:raw-data"])
    assert fabric.engine.choose(must, "x") == fabric.engine.choose(wish, "x") == 2
    fabric.put_node(2, data=[])
    assert fabric.engine.choose(must, "x") is None and fabric.engine.choose(wish, "x") == 0


def test_every_part_of_a_score_is_told_once_and_they_come_to_the_score() -> None:
    fabric = Fabric(*zones("a", "b"))
    fabric.put_node(1, data=["pool:lake"])
    web = vm(apart=["web:preferred", "api:preferred"], spread=["zone:preferred"])
    fabric.place("web-0", web)
    leans = (*read_affinity("default", [], web.anti_affinity_groups, web.spread).leans, SoftTerm("data", "pool:lake"))
    request = fabric.ask(vm(), leans=leans, data=(Datum("pool:lake", 1),))
    request = msgspec.structs.replace(request, strategy="data_locality")
    told = explain(fabric.engine, request, "x", fabric.engine.choose(request, "x"))
    for verdict in told.verdicts:
        names = [term.name for term in verdict.terms]
        assert len(set(names)) == len(names) and {"data", "data at hand", "spread zone"} <= set(names)
        assert sum(term.weight * term.value for term in verdict.terms) == pytest.approx(verdict.score, abs=0.01)


def test_a_change_in_a_group_wakes_who_asks_for_it_and_nobody_else() -> None:
    fabric = Fabric(*zones("a", "b"))
    fabric.place("web-0", vm(near=["web"]))
    groups = fabric.snapshot.groups.take_changed()
    assert depends_on(fabric.ask(vm(near=["web"])), groups)
    assert depends_on(fabric.ask(vm(apart=["web:preferred"], spread=["zone"])), groups)
    assert not depends_on(fabric.ask(vm(near=["db"])), groups)
    assert not depends_on(fabric.ask(vm()), groups)


def test_who_is_only_tried_somewhere_wakes_nobody() -> None:
    fabric = Fabric({})
    fabric.place("web-0", vm(near=["web"]))
    fabric.snapshot.groups.take_changed()
    fabric.place("web-1", vm(near=["web"]))
    fabric.snapshot.drop_allocation("web-1")
    assert fabric.snapshot.groups.take_changed() == set()


wishes = st.builds(
    vm,
    near=st.lists(st.sampled_from(["a", "b", "a:preferred"]), max_size=1),
    apart=st.lists(st.sampled_from(["c", "d", "c:preferred"]), max_size=1),
)
spreads = st.builds(
    vm,
    apart=st.sampled_from([["a"], ["a:preferred"], ["c:preferred"], ["b", "c"]]),
    spread=st.sampled_from([["zone"], ["zone:2"], ["host:2"], ["zone", "host:3"]]),
)


@settings(max_examples=examples(150), deadline=None)
@given(
    st.lists(st.sampled_from(["", "x", "y", "z"]), min_size=1, max_size=6),
    st.lists(st.one_of(wishes, spreads, st.integers(0, 11), st.tuples(st.integers(0, 5), st.booleans())), max_size=24),
)
def test_under_any_interleaving_none_apart_share_a_node_and_no_spread_exceeds_its_skew(
    labels: list[str], steps: list[VmSpec | int | tuple[int, bool]]
) -> None:
    fabric = Fabric(*zones(*labels), cpu=6)
    lying: dict[str, tuple[VmSpec, str]] = {}
    cordoned: set[str] = set()
    for number, step in enumerate(steps):
        if isinstance(step, int):
            gone = f"w{step}"
            fabric.snapshot.drop_allocation(gone)
            lying.pop(gone, None)
        elif isinstance(step, tuple):
            if step[0] < len(labels):
                fabric.put_node(step[0], cpu=6, cordoned=step[1])
                (cordoned.add if step[1] else cordoned.discard)(f"n{step[0]}")
        else:
            able = {f"n{n}" for n in range(len(labels)) if may_go(step, f"n{n}", labels, lying, cordoned)}
            assert Engine(fabric.snapshot).choose(fabric.ask(step), "w") == fabric.engine.choose(fabric.ask(step), "w")
            assert set(fabric.why(step)) == {f"n{n}" for n in range(len(labels))} - able
            where = fabric.place(f"w{number}", step)
            assert (where in able) if able else (where is None)
            if where is not None:
                lying[f"w{number}"] = step, where
            check_apart(lying)


def members(lying: dict[str, tuple[VmSpec, str]], group: str) -> list[str]:
    """The nodes of a group's members, one each."""
    return [node for spec, node in lying.values() if group in named(spec)]


def named(spec: VmSpec) -> set[str]:
    return {read_group(text, "").name for text in (*spec.affinity_groups, *spec.anti_affinity_groups)}


def check_apart(lying: dict[str, tuple[VmSpec, str]]) -> None:
    for name, (spec, node) in lying.items():
        for text in spec.anti_affinity_groups:
            wish = read_group(text, "")
            if wish.required:
                others = {key for key, (other, at) in lying.items() if at == node and wish.name in named(other)}
                assert others == {name}


def may_go(
    spec: VmSpec, where: str, labels: list[str], lying: dict[str, tuple[VmSpec, str]], cordoned: set[str]
) -> bool:
    """All of it spelt out once more, one node at a time."""
    if where in cordoned or sum(node == where for _, node in lying.values()) >= 6:
        return False
    hard_near = {wish.name for text in spec.affinity_groups if (wish := read_group(text, "")).required}
    hard_apart = {wish.name for text in spec.anti_affinity_groups if (wish := read_group(text, "")).required}
    for other, node in lying.values():
        alone = {wish.name for text in other.anti_affinity_groups if (wish := read_group(text, "")).required}
        if node == where and (hard_apart & named(other) or named(spec) & alone):
            return False
    for group in hard_near:
        joined = [node for other, node in lying.values() if group in named(other) and not is_alone(other, group)]
        if joined and where not in joined:
            return False
    return all(
        keeps_level(read_spread(text, ""), read_group(group, "").name, where, labels, lying, cordoned)
        for text in spec.spread
        for group in spec.anti_affinity_groups
    )


def is_alone(spec: VmSpec, group: str) -> bool:
    return group in spec.anti_affinity_groups


def keeps_level(
    wish: SpreadTerm,
    group: str,
    where: str,
    labels: list[str],
    lying: dict[str, tuple[VmSpec, str]],
    cordoned: set[str],
) -> bool:
    """The skew as it would be with one more at ``where``, counted anew."""
    value = {f"n{n}": (f"n{n}" if wish.key == HOST else label) for n, label in enumerate(labels)}
    domains = {value[node] for node in value if node not in cordoned and value[node]}
    counts = {domain: sum(value[node] == domain for node in members(lying, group)) for domain in domains}
    return value[where] in counts and counts[value[where]] + 1 - min(counts.values()) <= wish.skew
