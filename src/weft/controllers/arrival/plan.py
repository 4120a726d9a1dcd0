"""Next step of a VM that migrates here from another cluster: its Arrival, its target and that node's reports in; what to write out.
Pure and without memory.

This cluster decides only for itself. That the guest never ran here is said only after the target's node has reported so, or while
nothing of it ever had a place; then it never will, since the VM goes in the same commit."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.migration.abort import describe_stuck, is_stuck
from weft.controllers.migration.facts import READY, MigrationEndpoint
from weft.kinds.allocation import AllocationSpec, set_desired
from weft.kinds.arrival import ARRIVED, CANCELLED, FAILED, OVER, ArrivalActions, ArrivalSpec, ArrivalStatus
from weft.objects.envelope import Condition

FOR_GOOD = ("invalidInput", "unsupported", "noSpace")  # a target that can't get ready for such a reason never will
_PHASES = {"preparing": "Preparing", "waiting": "Waiting", "migrating": "Migrating", "switching": "Switching"}
ADDRESS_TAKEN = "addressTaken"
KEPT_SECONDS = 30 * 86_400.0  # from its end, if the other cluster never takes note of that
DAY_SECONDS = 86_400.0
Ending = Literal["Failed", "Cancelled"]


class ArrivalFacts(msgspec.Struct, frozen=True, kw_only=True):
    spec: ArrivalSpec
    actions: ArrivalActions
    status: ArrivalStatus
    cluster: str  # name here of where it comes from
    begun_at: float
    deleting: bool = False
    unlinked: str = ""  # why that cluster may let nothing arrive any more
    gone: bool = False  # there is no link with it
    workload: str = ""  # uid of the VM here; "": it is gone
    leaving: bool = False  # the VM is being deleted
    placed: Condition | None = None  # of the VM
    target: MigrationEndpoint | None = None
    allocation: str = ""  # uid of the target, or of that place
    active: MigrationEndpoint | None = None  # where its guest was found here after a restore of the store
    unsure: str = ""  # nodes that may have its guest, though the store knows of no target
    taken: str = ""  # which of its MACs another workload of its networks has, and who that is
    now: float = 0.0


class ArrivalPlan(msgspec.Struct, kw_only=True):
    status: ArrivalStatus
    target: AllocationSpec | None = None  # to write
    arrives: bool = False  # the VM runs here from now on
    goes: bool = False  # the VM and its target are deleted
    release: bool = False  # the Arrival is of no use any more
    forgets: bool = False  # it is deleted, so long after its end
    later: float | None = None  # seconds after which to plan again even if nothing changes


def plan_arrival(facts: ArrivalFacts) -> ArrivalPlan:
    status, target = facts.status, facts.target
    if status.phase in OVER:
        # The other cluster hasn't heard that its guest runs here, or never did; nothing else says so.
        kept_for_it = (status.phase == ARRIVED or bool(status.allocation)) and not facts.gone
        left = (status.ended_at or facts.begun_at) + KEPT_SECONDS - facts.now
        over = facts.actions.settled or (facts.deleting and (left <= 0 or not kept_for_it))
        forgets = left <= 0 and not facts.deleting
        return ArrivalPlan(status=status, release=over, forgets=forgets, later=min(max(left, 0.1), DAY_SECONDS))
    if facts.workload:
        status = _with(status, vm=facts.workload)
    place = target or facts.active
    if place is not None:
        status = _with(
            status,
            node=place.spec.node,
            node_uid=place.spec.node_uid,
            allocation=facts.allocation or status.allocation,
        )
    if target is not None and target.reports("takenOver"):
        return _arrive(facts, status, target)
    if facts.active is not None and target is None:
        return _arrive(facts, status, None)
    ending = _find_ending(facts)
    if ending is not None and not status.ending:
        status = _with(status, ending=ending[0], reason=ending[1], message=ending[2])
    if status.ending:
        return _give_up(facts, status)
    return ArrivalPlan(status=_show(facts, status), later=max(0.1, _time_left(facts)))


def _arrive(facts: ArrivalFacts, status: ArrivalStatus, target: MigrationEndpoint | None) -> ArrivalPlan:
    """The guest runs here: its target is the own place of the VM from now on."""
    report = target.migration_report if target is not None else None
    active = None
    if target is not None:
        active = replace(set_desired(target.spec, "run"), role="active", migration=None)
    over = _with(
        status,
        phase=ARRIVED,
        ending="",
        reason="",
        message="",
        pause_ms=report.pause_ms if report is not None else 0,
        ended_at=facts.now,
    )
    return ArrivalPlan(status=over, target=active, arrives=True)


def _find_ending(facts: ArrivalFacts) -> tuple[Ending, str, str] | None:
    """Why it can't arrive, if it can't: what it comes to, and the reason as token and sentence."""
    target = facts.target
    if facts.actions.cancel or facts.deleting:
        return CANCELLED, "cancelled", "cancelled on request"
    if facts.unlinked:
        return FAILED, "notLinked", facts.unlinked
    if not facts.workload or facts.leaving:
        return CANCELLED, "workloadDeleted", f"{facts.spec.of} was deleted here"
    if facts.taken:
        return FAILED, ADDRESS_TAKEN, f"{facts.taken}; a guest that runs keeps its MAC"
    report = target.migration_report if target is not None else None
    if target is not None and report is not None and report.phase in ("failed", "abandoned"):
        return FAILED, report.reason or "failed", f"{target.spec.node}: {report.message or report.reason or 'failed'}"
    if target is not None and is_stuck(target) and target.report.reason in FOR_GOOD:
        return FAILED, target.report.reason, describe_stuck(target)
    if target is None and facts.status.allocation:
        return FAILED, "targetLost", f"its target on {facts.status.node} is gone"
    if _time_left(facts) <= 0:
        why = (
            facts.placed.message
            if target is None and facts.placed is not None and facts.placed.status == "False"
            else ""
        )
        return (
            FAILED,
            "timedOut",
            f"it hasn't arrived within {facts.spec.timeout_seconds:g} s" + (f": {why}" if why else ""),
        )
    return None


def _give_up(facts: ArrivalFacts, status: ArrivalStatus) -> ArrivalPlan:
    """Nothing of it stays here, once it is certain that the guest never ran."""
    target = facts.target
    if target is None and facts.unsure:
        message = f"waits for {facts.unsure}: the store was restored, and the guest may run there"
        return ArrivalPlan(status=_with(status, message=message), later=1.0)
    if target is None or target.reports("abandoned"):
        over = _with(status, phase=status.ending, ending="", never_ran=True, ended_at=facts.now)
        return ArrivalPlan(status=over, goes=True)
    if target.spec.desired != "stop":
        return ArrivalPlan(status=status, target=set_desired(target.spec, "stop"))
    if target.node_phase not in READY:
        node = target.spec.node
        message = (
            f"{node} sends no heartbeat, and the guest may run there; waiting for the node. If that node is off for good: "
            f"weft node delete {node} --force; the guest then continues at {facts.cluster} as it was handed over"
        )
        return ArrivalPlan(status=_with(status, message=message))
    return ArrivalPlan(status=status)


def _show(facts: ArrivalFacts, status: ArrivalStatus) -> ArrivalStatus:
    target = facts.target
    if target is None:
        refused = facts.placed if facts.placed is not None and facts.placed.status == "False" else None
        return _with(
            status,
            phase="Pending",
            reason=refused.reason if refused is not None else "",
            message=refused.message if refused is not None else "",
        )
    report = target.migration_report
    stuck = is_stuck(target)
    return _with(
        status,
        phase=_PHASES.get(report.phase, "Preparing") if report is not None else "Preparing",
        address=report.address if report is not None else "",
        reason=target.report.reason if stuck else "",
        message=describe_stuck(target) if stuck else "",
    )


def _time_left(facts: ArrivalFacts) -> float:
    """A clock that was set back lets nothing wait longer than its timeout."""
    return facts.spec.timeout_seconds - max(0.0, facts.now - facts.begun_at)


def _with(status: ArrivalStatus, **changes: Any) -> ArrivalStatus:
    return replace(status, **changes)
