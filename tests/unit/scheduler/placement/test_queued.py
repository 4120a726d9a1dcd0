"""The leases that wait, as the scheduler asks for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from tests.unit.scheduler.node_items import make_node

from weft.contracts.policy import Request
from weft.informer.view import Item, make_view
from weft.kinds.allocation import ALLOCATION, AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.lease import AllocatedLease, LeaseRequest
from weft.kinds.vm import VM, VmSpec
from weft.objects.identity import Ref
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.leases import LeasedMember
from weft.scheduler.intake import Intake
from weft.scheduler.lease.backfill import Queued
from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.node.facts import read_node
from weft.scheduler.placement.queue_nodes import QueuedLease
from weft.scheduler.placement.queued import MOST_RETRIED, QueuedLeases
from weft.scheduler.table.snapshot import Snapshot

NOW = 1_000_000.0


class Asked:
    """An intake that notes whether a pass is asked for."""

    pass_due = False

    def enter(self, keys: Iterable[str]) -> None:
        assert not list(keys)
        self.pass_due = True


def make_vm(name: str) -> Item:
    spec = VmSpec(image="tiny", cpu=4.0, memory=2**30)
    return Item(VM.make(name, spec, NOW, project="default", uid=name), spec=spec)


def test_once_the_first_one_leaves_a_pass_gives_back_what_was_kept_for_it() -> None:
    snapshot, intake = Snapshot(), Asked()
    snapshot.put_node(read_node(make_node("n1")))
    engine = Engine(snapshot)
    leases = QueuedLeases(make_view(), engine, cast(Intake, intake), lambda item: None, "least_loaded")  # type: ignore[arg-type, return-value]
    first, other = make_vm("first"), make_vm("other")
    for item in (first, other):
        engine.leases.put(Queued(item.key, "ann", NOW, (4000.0, 2**30), 3600.0, 4.0))
    engine.leases.first = engine.leases.get(first.key)
    engine.leases.kept = {"kept/0": CalendarEntry("u-n1", NOW, NOW + 3600.0, (4000, 2**30))}
    leases.forget(other)
    assert not intake.pass_due
    leases.forget(first)
    assert intake.pass_due


def test_who_is_not_among_the_first_gets_others_to_give_way_in_turn() -> None:
    view, engine = make_view(), Engine(Snapshot())
    lease = AllocatedLease(mode="best-effort", start=NOW, preemptible=True, priority=0)
    spec = AllocationSpec(
        node="n1",
        node_uid="u-n1",
        workload=Ref(kind="vm", project="default", name="runs", uid="w"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1.0, memory=2**30, disk=2**30),
        lease=lease,
    )
    report = AllocationReport(incarnation=1, state="running", started_at=NOW)
    item = Item(ALLOCATION.make("u-n1.runs", spec, NOW, uid="a", report=report), spec=spec, report=report)
    view.put_item(item.key, item)
    asked, request = LeaseRequest(mode="best-effort"), Request((4000, 2**30, 0), "q35", "least_loaded")
    for number in range(3 * MOST_RETRIED):
        members = (LeasedMember(request, f"u{number}", f"vm/{number}", asked, None, 0.0),)
        waits = QueuedLease(f"q{number:02}", "ann", NOW + number, (4000.0, 2**30), 3600.0, level=5.0, members=members)
        engine.leases.put(waits)
    leases = QueuedLeases(view, engine, cast(Intake, Asked()), lambda item: None, "least_loaded")  # type: ignore[arg-type, return-value]
    passes = [leases._list_preempting(NOW) for _ in range(6)]
    first = [f"q{number:02}" for number in range(MOST_RETRIED // 2)]
    assert all(len(one) == MOST_RETRIED and one[: len(first)] == first for one in passes)
    assert {id_ for one in passes for id_ in one} == {f"q{number:02}" for number in range(3 * MOST_RETRIED)}
