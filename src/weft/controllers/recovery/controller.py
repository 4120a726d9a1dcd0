"""Carries out recovery plans: rehearses them in networks that lead nowhere, or promotes their replicas, in order; measures, and
removes what a rehearsal has made.

Reads recovery plans, replicas, snapshots, VMs, volumes, networks, services, clusters and quotas; writes recoveryplan.status, makes
and removes what a run needs, promotes replicas, releases the finalizer "recoveryplan". Woken by what it has made, by replicas, and
by time while a run goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.contracts.store import MAX_PRECONDITIONS, MAX_WRITES
from weft.controllers.loop import Plan
from weft.controllers.recovery.facts import RecoveryFacts, ServiceReadiness, VmFacts
from weft.controllers.recovery.make import begin_run, drop_made, is_isolated, list_made, make_member
from weft.controllers.recovery.members import (
    find_excess,
    find_replica,
    list_answering,
    list_members,
    list_networks,
)
from weft.controllers.recovery.plan import (
    RecoveryStep,
    is_rehearsing,
    is_under_way,
    note_refusal,
    note_store_refusal,
    plan_recovery,
)
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.fields.recovery.run import FAILED, FAILOVER, PASSED, REHEARSE, RecoveryRun, RunMember, RunResult
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.recovery_plan import RECOVERY_PLAN, RecoveryPlanActions, RecoveryPlanSpec, RecoveryPlanStatus
from weft.kinds.replica import ReplicaMarks, ReplicaStatus
from weft.kinds.service import ServiceStatus
from weft.kinds.vm import VmSpec
from weft.objects.errors import WeftError
from weft.objects.identity import new_uid, object_key
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_duration

FINALIZER, SOURCE = "recoveryplan", "recovery plans"
TICK_SECONDS = 0.5  # a run that goes on is looked at as often
REST_SECONDS = 30.0  # a plan that can't be carried out yet


class RecoveryPlans:
    name = "recovery plans"
    kinds = ("recoveryplan", "replica", "snapshot", "vm", "volume", "network", "service")

    def __init__(self) -> None:
        self._refusals: dict[str, str] = {}  # by key of the plan, until it is planned again

    def note_refusal(self, key: str, why: str) -> None:
        self._refusals[key] = why

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "recoveryplan":
            return (change.key,)
        if change.kind == "replica":
            return _route_replica(view, change)
        owner = change.item.envelope.owner_key(RECOVERY_PLAN.name)
        return (owner,) if owner is not None else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        begins = dict[str | None, Item]()  # by project
        refusals = {key: self._refusals.pop(key, "") for key in keys}
        for item in [item for key in keys if (item := view.get(key)) is not None]:
            commit, status = plan_one(view, item, begins, now, refusals[item.key])
            if commit is not None:
                plan.commits.append(commit)
                if is_rehearsing(status):
                    begins[item.envelope.project] = item
            if item.deleting or is_under_way(status, item.actions(RecoveryPlanActions).run_generation):
                plan.later[item.key] = TICK_SECONDS
            elif status.phase == "Pending" or refusals[item.key]:
                plan.later[item.key] = REST_SECONDS
        return plan


def _route_replica(view: View, change: Changed) -> Iterable[str]:
    if not has_changed(
        change, lambda item: (item.uid, item.deleting, item.marks(ReplicaMarks).role, _has_points(item))
    ):
        return ()
    project = change.item.envelope.project
    return [item.key for item in view.of_kind("recoveryplan").values() if item.envelope.project == project]


def _has_points(replica: Item) -> bool:
    return bool(replica.status(ReplicaStatus).points)


def read_facts(view: View, item: Item, begins: Mapping[str | None, Item], now: float) -> RecoveryFacts:
    """``begins``: the plans whose rehearsals begin in the same moment, by project."""
    spec, status = item.spec(RecoveryPlanSpec), item.status(RecoveryPlanStatus)
    actions = item.actions(RecoveryPlanActions)
    asked = actions.run_mode if actions.run_generation > status.ended_generation else None
    fresh = f"{'failover' if asked == FAILOVER else 'rehearsal'}-{new_uid()[:6]}"
    run = status.run
    made = list_made(view, item)
    candidates = list_members(view, item, fresh, asked, now) if run is None or run.is_over else []
    begins_now = asked is not None and run is None
    return RecoveryFacts(
        name=item.envelope.name,
        deleting=item.deleting,
        spec=spec,
        actions=actions,
        status=status,
        candidates=candidates,
        vms=_read_vms(view, item, run) if run is not None else {},
        ready=_read_ready(view, item, run) if run is not None else {},
        leftovers=bool(made if item.deleting else made.select(run)),
        stale=bool(made.select(run, stale=True)),
        answering=list_answering(view, item, candidates) if asked == FAILOVER else (),
        excess=find_excess(view, item, candidates) if begins_now else "",
        networks=len(list_networks(view, item, [one.member for one in candidates]))
        if begins_now and asked == REHEARSE
        else 0,
        busy=_find_busy(view, item, begins),
        isolated=is_isolated(view, item, run) if run is not None and run.mode == REHEARSE else True,
        fresh_name=fresh,
    )


def _read_vms(view: View, item: Item, run: RecoveryRun) -> dict[str, VmFacts]:
    found = {}
    for member in run.members:
        vm = view.get(object_key("vm", item.envelope.project, member.vm))
        if vm is not None and not vm.deleting:
            found[member.vm] = _read_workload(view, item, member, vm)
    return found


def _read_workload(view: View, item: Item, member: RunMember, workload: Item) -> VmFacts:
    status = workload.status(WorkloadStatus)
    if workload.marks(WorkloadMarks).fenced:  # it comes back once its disks are as they were in the point
        replica = find_replica(view, item, member.replica)
        why = replica.status(ReplicaStatus).message if replica is not None else ""
        return VmFacts(Phase.PENDING, why or "its disks go back to the point")
    if status.observed_generation < workload.envelope.generation and workload.spec(VmSpec).run == "run":
        return VmFacts(Phase.PENDING, "it starts")  # what is known of it is of before that
    return VmFacts(status.phase, status.message or status.reason)


def _read_ready(view: View, item: Item, run: RecoveryRun) -> dict[str, ServiceReadiness]:
    found = {}
    for name in [check.service for member in run.members for check in member.checks if check.service]:
        service = view.get(object_key("service", item.envelope.project, name))
        if service is None:
            continue
        status = service.status(ServiceStatus)
        one = status.endpoints[0] if status.endpoints else None
        found[name] = (
            ServiceReadiness(one.ready, one.reason) if one is not None else ServiceReadiness(False, status.message)
        )
    return found


def _find_busy(view: View, item: Item, begins: Mapping[str | None, Item]) -> str:
    """The rehearsal of its project that this plan's waits for."""
    project = item.envelope.project
    plans = (one for one in view.of_kind("recoveryplan").values() if one.envelope.project == project)
    others = (one for one in plans if one.uid != item.uid and is_rehearsing(one.status(RecoveryPlanStatus)))
    other = begins.get(project) or next(others, None)
    return f"the rehearsal of recoveryplan/{other.envelope.name}" if other is not None else ""


def plan_one(
    view: View, item: Item, begins: Mapping[str | None, Item], now: float, refusal: str = ""
) -> tuple[Commit | None, RecoveryPlanStatus]:
    """The commit for one plan, and its status after that. ``refusal``: why the store refused what was planned before."""
    facts = read_facts(view, item, begins, now)
    step = note_store_refusal(facts, refusal) if refusal else plan_recovery(facts, now)
    if step.act == "release":
        return Commit(item.key, [let_go(item, FINALIZER)], [unchanged(item)]), step.status
    draft = Draft()
    status = carry_out(draft, view, item, step, now)
    if status != facts.status:
        draft.change(item, status=status)
    elif draft.writes:
        draft.preconditions.append(unchanged(item))
    return draft.commit(item.key, _list_events(item, facts.status, status)), status


def carry_out(draft: Draft, view: View, item: Item, step: RecoveryStep, now: float) -> RecoveryPlanStatus:
    """Put what the step makes or removes into ``draft``; the status that says so."""
    status, run = step.status, step.status.run
    if step.act == "drop":
        drop_made(draft, list_made(view, item), now)
    elif step.act == "begin" and run is not None:
        status = replace(status, run=begin_run(draft, view, item, run, now))
    elif step.act == "make" and run is not None:
        made = Draft()
        try:
            status = replace(status, run=make_member(made, view, item, run, step.member, now))
        except WeftError as problem:  # it could be made when the run began
            status = note_refusal(status, run, step.member, problem.message)
        else:
            draft.writes += made.writes
            draft.preconditions += made.preconditions
    if step.sweep:  # as much as goes into the same commit; the rest goes with the next steps
        most = min(MAX_WRITES - len(draft.writes), MAX_PRECONDITIONS - len(set(draft.preconditions)) - 1) - 1
        drop_made(draft, list_made(view, item).select(run, stale=True), now, most)
    return status


def _list_events(item: Item, was: RecoveryPlanStatus, now: RecoveryPlanStatus) -> list[Event]:
    events = []
    for before, after, what in ((was.rehearsal, now.rehearsal, "Rehearsal"), (was.failover, now.failover, "Failover")):
        if after is not None and after != before:
            type_: Literal["Normal", "Warning"] = "Normal" if after.phase == PASSED else "Warning"
            events.append(Event(type_, f"{what}{after.phase}", describe(after), item.envelope.ref, SOURCE))
    return events


def describe(result: RunResult) -> str:
    if result.phase != PASSED:
        return result.message or FAILED
    rpo = format_duration(result.rpo_seconds) if result.rpo_seconds is not None else "not known"
    return f"measured RPO {rpo}, RTO {format_duration(result.rto_seconds or 0.0)}, {len(result.checks)} checks passed"
