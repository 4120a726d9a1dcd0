"""Who is preempted: tried against all sets of victims on small fabrics."""

from __future__ import annotations

import random
from itertools import combinations

import msgspec
import pytest
from tests.long import mark_seeds
from tests.unit.scheduler.node_items import GIB, REPORT, make_node

from weft.contracts.policy import Request
from weft.informer.disruption.budgets import Budgets
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import ALLOCATION, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.lease import MOST_SUSPENSIONS, AllocatedLease, LeaseRequest, Suspension
from weft.objects.identity import Ref
from weft.scheduler.allocation.count import count_allocation
from weft.scheduler.allocation.preempt import Need, find_way, read_need, read_victim
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.node.facts import read_node
from weft.scheduler.table.snapshot import Snapshot, state_of

NOW = 1_000_000.0
HOUR = 3600.0


def place(name: str, cpu: float, *, node: str = "n1", kind: str = "vm", **fields: object) -> Item:
    lease = {"mode": "best-effort", "start": 0.0, "preemptible": True}
    lease |= {
        key: fields.pop(key) for key in ("priority", "end", "suspensions", "suspension", "cancelled") if key in fields
    }
    state = fields.pop("state", "running")
    spec = AllocationSpec(
        **{
            "node": node,
            "node_uid": f"u-{node}",
            "workload": Ref(kind=kind, project="default", name=name, uid=f"w-{name}"),
            "workload_generation": 1,
            "incarnation": 1,
            "resources": Resources(cpu=cpu, memory=GIB, disk=GIB),
            "lease": AllocatedLease(**lease),
            **fields,
        }
    )
    report = AllocationReport(incarnation=1, state=state, started_at=NOW - 100.0)
    return Item(
        ALLOCATION.make(f"u-{node}.{name}", spec, NOW - 100.0, uid=name, report=report), spec=spec, report=report
    )


def fabric(places: list[Item], nodes: tuple[str, ...] = ("n1",), **report: object) -> tuple[View, Engine]:
    facts = msgspec.structs.replace(REPORT, capabilities=["suspend"], **report)
    items = [make_node(name, facts) for name in nodes]
    view, snapshot = make_view(), Snapshot()
    for item in items:
        view.put_item(item.key, item)
        snapshot.put_node(read_node(item))
    for item in places:
        view.put_item(item.key, item)
        count_allocation(snapshot, item.key, item, NOW)
    return view, Engine(snapshot)


def need(cpu: float, mode: str = "immediate", priority: int = 0, duration: float | None = None) -> Need:
    request = Request(amounts=(round(cpu * 1000), GIB, GIB), machine="q35", strategy="least_loaded", mode="long-lived")
    return read_need(request, "w", LeaseRequest(mode=mode, priority=priority, duration=duration), 0.0)


def all_ways(view: View, engine: Engine, wanted: Need, places: list[Item]) -> dict[tuple[str, ...], bool]:
    """Every set of permitted victims on one node, and whether what is left is enough, by counting cores alone."""
    found = {}
    for node in {item.spec(AllocationSpec).node for item in places}:
        here = [item for item in places if item.spec(AllocationSpec).node == node]
        may = [item for item in here if read_victim(view, item, wanted, NOW) is not None]
        for count in range(1, len(may) + 1):
            for some in combinations(may, count):
                kept = sum(item.spec(AllocationSpec).resources.cpu for item in here if item not in some)
                found[tuple(sorted(item.key for item in some))] = 4.0 - kept >= wanted.request.amounts[0] / 1000
    return found


@pytest.mark.parametrize("seed", mark_seeds(60))
def test_victims_are_enough_none_is_spare_and_no_dearer_priority_is_touched(seed: int) -> None:
    dice = random.Random(seed)
    places, room = [], {"n1": 4.0, "n2": 4.0}
    for index in range(dice.randrange(2, 8)):
        node, cpu = dice.choice(["n1", "n2"]), dice.choice([0.5, 1.0, 1.5, 2.0])
        if room[node] >= cpu:
            room[node] -= cpu
            end = NOW + dice.choice([HOUR, 9 * HOUR]) if dice.random() < 0.5 else None
            places.append(place(f"v{index}", cpu, node=node, priority=dice.randrange(-3, 4), end=end))
    view, engine = fabric(places, ("n1", "n2"))
    duration = dice.choice([None, 2 * HOUR])
    wanted = need(
        dice.choice([2.0, 3.0, 4.0]), dice.choice(["immediate", "best-effort"]), dice.randrange(-2, 4), duration
    )
    before = state_of(engine.snapshot)
    way = find_way(view, engine, wanted, NOW, Budgets(view), {})
    assert state_of(engine.snapshot) == before
    ways = all_ways(view, engine, wanted, places)
    enough = [keys for keys, fits in ways.items() if fits]
    if way is None:
        assert not enough
        return
    chosen = tuple(sorted(victim.key for victim in way.victims))
    assert ways[chosen]
    assert not any(set(keys) < set(chosen) for keys in enough)
    priority = {item.key: item.spec(AllocationSpec).lease.priority for item in places}  # type: ignore[union-attr]
    assert max(priority[key] for key in chosen) == min(max(priority[key] for key in keys) for keys in enough)
    assert all(priority[key] <= wanted.priority - (not wanted.firm) for key in chosen)


def test_of_equal_ones_the_one_with_less_to_save_and_then_the_one_hit_less_often_goes() -> None:
    large = Resources(cpu=4.0, memory=4 * GIB, disk=GIB)
    places = [place("a", 4.0, node="n1", resources=large), place("b", 4.0, node="n2", suspensions=1)]
    view, engine = fabric([*places, place("c", 4.0, node="n3")], ("n1", "n2", "n3"))
    way = find_way(view, engine, need(2.0), NOW, Budgets(view), {})
    assert way is not None and [victim.item.envelope.name for victim in way.victims] == ["u-n3.c"]


@pytest.mark.parametrize(
    "fields",
    [
        {"suspension": Suspension("vm/x", NOW)},
        {"suspensions": MOST_SUSPENSIONS},
        {"cancelled": True},
        {"state": "stopped"},
        {"state": "suspended"},
        {"desired": "stop"},
        {"role": "source"},
        {"waits_for": "u-n1.x"},
        {"kind": "container"},
        {"priority": 1},
    ],
)
def test_who_can_not_be_suspended_is_no_victim(fields: dict[str, object]) -> None:
    view, engine = fabric([place("a", 4.0, **fields)])  # type: ignore[arg-type]
    assert find_way(view, engine, need(2.0), NOW, Budgets(view), {}) is None
    view, engine = fabric([place("a", 4.0)])
    assert find_way(view, engine, need(2.0), NOW, Budgets(view), {}) is not None


def test_one_that_gave_way_takes_its_disk_and_after_an_hour_all_again() -> None:
    item = place("a", 4.0, state="suspended", suspension=Suspension("vm/x", NOW))
    said = msgspec.structs.replace(item.report(AllocationReport), reason="preempted")
    gone = Item(item.envelope, spec=item.spec(AllocationSpec), report=said)
    _, engine = fabric([item])

    def taken() -> list[int]:
        return [int(amount) for amount in engine.snapshot.allocated[:, 0]]

    assert taken() == [4000, GIB, GIB]  # until its node says so
    count_allocation(engine.snapshot, gone.key, gone, NOW + 1)
    assert taken() == [0, 0, GIB]
    assert engine.snapshot.leases.take_over(NOW + 3600) == [gone.key]
    count_allocation(engine.snapshot, gone.key, gone, NOW + 3600)
    assert taken() == [4000, GIB, GIB]
