"""When a snapshot is taken of an allocation, and what is reported of its snapshots. Pure.

A snapshot begins when nothing else is due: the guest runs, or the allocation is at rest. Once begun, it goes before all that would
start the guest, migrate it or touch its disks; only a stop doesn't wait for it.
"""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation.facts import Plan, PlanInput, is_alive
from weft.agent.allocation.steps.names import StepName
from weft.agent.state.allocation import Taking
from weft.agent.state.snapshots import find_turn, find_wanted
from weft.kinds.fields.allocated_snapshot import SnapshotReport

WAITS, NOT_HELD = "waits", "notHeld"
_AT_REST = ("stopped", "suspended", "failed")
_ENDS = (StepName.STOP, StepName.END)


def plan_snapshots(facts: PlanInput, plan: Plan) -> Plan:
    """``plan`` with the step of the next snapshot in its place."""
    taking = facts.checkpoint.taking
    if taking is None:
        begins = find_wanted(facts.local.spec, facts.checkpoint) is not None and not find_obstacle(facts, plan)
        return replace(plan, steps=(StepName.SNAPSHOT,)) if begins else plan
    if taking.snapshot.turn and not taking.finished:
        return _plan_hold(facts, taking, plan)
    if not is_alive(facts.guest):
        return replace(plan, steps=(StepName.SNAPSHOT, *plan.steps), review_at=None)
    if plan.steps and plan.steps[0] in _ENDS:
        return replace(plan, steps=(plan.steps[0], StepName.SNAPSHOT, *plan.steps[1:]))
    if facts.now >= facts.snapshot_at:
        return replace(plan, steps=(StepName.SNAPSHOT,), review_at=None)
    return replace(plan, steps=(), review_at=min(facts.snapshot_at, plan.review_at or facts.snapshot_at))


def _plan_hold(facts: PlanInput, taking: Taking, plan: Plan) -> Plan:
    """Plan the hold of a group's member: nothing else is done to it until all stand still, or it stops waiting for them."""
    waits_until = facts.held_until or facts.snapshot_at
    ended = taking.live and not is_alive(facts.guest)
    called = bool(facts.held_until) and find_turn(facts.local, taking.snapshot.uid) != "hold"
    if facts.now >= waits_until or ended or called:
        return replace(plan, steps=(StepName.SNAPSHOT,), review_at=None)
    return replace(plan, steps=(), review_at=waits_until)


def find_obstacle(facts: PlanInput, plan: Plan) -> str:
    """Why no snapshot begins now, or ""."""
    spec, checkpoint, guest = facts.local.spec, facts.checkpoint, facts.guest
    relocation = checkpoint.relocation
    if facts.local.deleting or facts.superseded or checkpoint.orphan or facts.unconfirmed:
        return "the VM has no place here that is certain"
    if spec.role != "active" or checkpoint.migration is not None or facts.migrating:
        return "it begins once the VM has migrated"
    if facts.relocating or spec.storage is not None or (relocation and relocation.state in ("copying", "there")):
        return "it begins once the VM's disk is relocated"
    if plan.steps or plan.review_at is not None:
        return "it begins once the VM has started or stopped"
    if is_alive(guest):
        runs = guest.state in ("running", "paused") and not guest.held
        return "" if runs else "it begins once the VM runs"
    return "" if plan.state in _AT_REST else "it begins once the VM runs"


def report_snapshots(facts: PlanInput, plan: Plan) -> list[SnapshotReport]:
    """How far the spec's snapshots are, in their order."""
    over = {report.uid: report for report in facts.checkpoint.taken}
    taking, wanted_ones = facts.checkpoint.taking, facts.local.spec.snapshots
    reports = [report for report in facts.checkpoint.taken if report.uid not in {one.uid for one in wanted_ones}]
    for wanted in wanted_ones:
        report = over.get(wanted.uid, SnapshotReport(uid=wanted.uid, pool=facts.local.spec.pool))
        taken = taking is not None and taking.snapshot.uid == wanted.uid
        if wanted.turn in ("go", "drop") and wanted.uid not in over and not taken:
            report = replace(report, phase="failed", reason=NOT_HELD, message="it did not stand still with its group")
        elif wanted.turn == "prepare" and taking is None and not find_obstacle(facts, plan):
            report = replace(report, turn="prepare")
        elif wanted.uid not in over and taking is None and StepName.SNAPSHOT not in plan.steps:
            report = replace(report, reason=WAITS, message=find_obstacle(facts, plan))
        elif taking is not None and taking.snapshot.uid == wanted.uid:
            message = "its memory is being saved" if taking.finished else ""
            report = replace(report, message=message, turn="hold" if facts.held_until else "")
        reports.append(report)
    return reports
