"""A VM that migrates here from another cluster: what is written of it, and when it is said that its guest never ran."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from weft.controllers.arrival.plan import KEPT_SECONDS, ArrivalFacts, ArrivalPlan, plan_arrival
from weft.controllers.migration.facts import MigrationEndpoint
from weft.kinds.allocation import AllocationReport, AllocationSpec, Resources
from weft.kinds.arrival import ArrivalActions, ArrivalSpec, ArrivalStatus
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.objects.envelope import Condition
from weft.objects.identity import Ref

NOW = 1000.0
SPEC = ArrivalSpec(of="vm/web", origin="o", key="u", node="e1", node_uid="n", allocation="s")
ALLOCATED = ArrivalStatus(vm="w", node="w1", node_uid="x", allocation="t")


def target(says: str = "", **more: Any) -> MigrationEndpoint:
    spec = AllocationSpec(
        node="w1",
        node_uid="x",
        workload=Ref("vm", "web", "w", "default"),
        workload_generation=1,
        incarnation=1,
        role="target",
        desired=more.get("desired", "run"),
        resources=Resources(),
        migration=AllocatedMigration(key="u", peer="east/e1", peer_uid="n", peer_allocation="s", peer_ca="CA"),
    )
    told = MigrationReport(key="u", phase=says, address=more.get("address", ""), pause_ms=21) if says else None  # type: ignore[arg-type]
    report = AllocationReport(state=more.get("state", "preparing"), reason=more.get("reason", ""), migration=told)
    return MigrationEndpoint(spec, report, more.get("node", "Ready"))


def plan(at: MigrationEndpoint | None = None, status: ArrivalStatus = ALLOCATED, **more: Any) -> ArrivalPlan:
    given = {
        "spec": SPEC,
        "actions": ArrivalActions(),
        "cluster": "east",
        "begun_at": NOW - 5,
        "workload": "w",
        "allocation": "t",
        "now": NOW,
        **more,
    }
    return plan_arrival(ArrivalFacts(status=status, target=at, **given))


def test_until_it_has_a_place_its_phase_says_why() -> None:
    refused = Condition("Placed", "False", "insufficientResources", "no node has 4 GiB free")
    waits = plan(None, ArrivalStatus(), placed=refused, allocation="")
    assert (waits.status.phase, waits.status.message) == (
        "Pending",
        "no node has 4 GiB free",
    ) and waits.status.vm == "w"


def test_what_its_node_reports_is_shown_with_the_address_where_it_listens() -> None:
    shown = plan(target("waiting", address="10.0.0.9:7000"), ArrivalStatus()).status
    assert (shown.phase, shown.address, shown.node, shown.allocation) == ("Waiting", "10.0.0.9:7000", "w1", "t")
    assert plan(target("migrating")).status.phase == "Migrating"


def test_once_it_is_taken_over_the_target_is_the_vms_place_also_if_someone_cancelled_it() -> None:
    for asked in (ArrivalActions(), ArrivalActions(cancel=True)):
        came = plan(target("takenOver", desired="stop"), actions=asked)
        assert came.arrives and came.target is not None
        assert (came.target.role, came.target.migration, came.target.desired) == ("active", None, "run")
        assert (came.status.phase, came.status.pause_ms, came.status.never_ran) == ("Arrived", 21, False)


ENDINGS: list[tuple[dict[str, Any], str, str]] = [
    ({"actions": ArrivalActions(cancel=True)}, "Cancelled", "cancelled"),
    ({"deleting": True}, "Cancelled", "cancelled"),
    ({"leaving": True}, "Cancelled", "workloadDeleted"),
    ({"unlinked": "the link with cluster east was ended"}, "Failed", "notLinked"),
    (
        {"taken": "MAC 52:54:00:00:00:01 in network default is taken here by vm/own (10.0.0.2)"},
        "Failed",
        "addressTaken",
    ),
    ({"now": NOW + 600}, "Failed", "timedOut"),
]


@pytest.mark.parametrize(("more", "phase", "reason"), ENDINGS)
def test_nothing_stays_once_its_node_says_that_it_never_ran_and_not_before(
    more: dict[str, Any], phase: str, reason: str
) -> None:
    stops = plan(target("migrating"), **more)
    assert stops.target is not None and stops.target.desired == "stop" and not stops.goes
    assert (stops.status.ending, stops.status.reason) == (phase, reason)
    waits = plan(target("migrating", desired="stop"), stops.status, **more)
    assert waits.target is None and not waits.goes and not waits.status.never_ran
    lost = plan(target("migrating", desired="stop", node="Lost"), stops.status, **more)
    assert not lost.goes and "the guest may run there" in lost.status.message
    over = plan(target("abandoned", desired="stop"), stops.status, **more)
    assert over.goes and over.status.never_ran and over.status.phase == phase


def test_without_a_target_it_goes_at_once_unless_a_node_may_have_its_guest() -> None:
    over = plan(None, ArrivalStatus(vm="w"), actions=ArrivalActions(cancel=True), allocation="")
    assert over.goes and over.status.never_ran
    unsure = plan(None, ArrivalStatus(vm="w"), actions=ArrivalActions(cancel=True), allocation="", unsure="w2")
    assert not unsure.goes and not unsure.status.never_ran and "w2" in unsure.status.message


def test_a_guest_that_a_restored_store_found_here_has_arrived() -> None:
    came = plan(None, ArrivalStatus(vm="w"), active=target(), allocation="t")
    assert came.arrives and (came.status.allocation, came.status.node) == (
        "t",
        "w1",
    )  # the other cluster knows it by these


def test_it_is_kept_until_the_other_cluster_has_taken_note() -> None:
    arrived = replace(ALLOCATED, phase="Arrived")
    assert not plan(None, arrived).release and not plan(None, arrived, deleting=True).release
    assert plan(None, arrived, actions=ArrivalActions(settled=True)).release
    assert plan(None, arrived, deleting=True, unlinked="the link was ended", gone=True).release
    failed = replace(ALLOCATED, phase="Failed", never_ran=True)
    assert (
        not plan(None, failed, deleting=True).release
        and not plan(None, failed, deleting=True, unlinked="no grant").release
    )
    assert plan(None, failed, actions=ArrivalActions(settled=True)).release
    assert plan(None, ArrivalStatus(phase="Failed", never_ran=True), deleting=True).release  # it had no place


@pytest.mark.parametrize("phase", ["Arrived", "Failed", "Cancelled"])
def test_of_an_end_that_the_other_cluster_never_notes_nothing_stays_for_ever(phase: str) -> None:
    status = replace(ALLOCATED, phase=phase, never_ran=phase != "Arrived", ended_at=NOW - KEPT_SECONDS + 60.0)
    kept = plan(None, status)
    assert not kept.forgets and kept.later == 60.0
    old = replace(status, ended_at=NOW - KEPT_SECONDS)
    assert plan(None, old).forgets and not plan(None, old).release
    gone = plan(None, old, deleting=True)
    assert gone.release and not gone.forgets


def test_a_target_that_never_gets_ready_for_a_lasting_reason_ends_it() -> None:
    stuck = target("preparing", state="failed", reason="unsupported")
    assert plan(stuck).status.ending == "Failed"
    assert plan(target("preparing", state="failed", reason="imageMissing")).status.ending == ""
