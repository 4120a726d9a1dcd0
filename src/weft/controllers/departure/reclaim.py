"""A VM that people take back, which was handed over to another cluster by a migration that the store, which was restored, doesn't
know of: the facts, and what comes of it. Pure and without memory.

The other cluster is asked for its Arrival of that migration. It goes on here once that cluster says that it never ran at the very
target which it was handed to, or if people force it. Where the line is cut nobody can be asked: people's word is all there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.departure.facts import LINKED
from weft.controllers.departure.seen import MOST_TEXT, ArrivalAct, SeenArrival, cut
from weft.controllers.migration.controller import SOURCE
from weft.informer.commit import Commit, Draft, edit
from weft.informer.view import Item, View
from weft.kinds.allocation import (
    ALLOCATIONS_BY_WORKLOAD,
    AllocationReport,
    AllocationSpec,
    come_back,
    find_unknown_departure,
    has_left_cluster,
)
from weft.kinds.arrival import ARRIVED, OVER
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus, describe_link, describe_unlinked
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VMS_RECLAIMED, VmActions
from weft.objects.envelope import Condition, set_condition
from weft.objects.errors import Unavailable, WeftError
from weft.objects.identity import object_key

UNREACHABLE = "Unreachable"
# Reasons of the condition: it goes on; it stays as it is; the other cluster is still asked.
NEVER_RAN, NOT_ASKED, FORCED = "NeverRan", "NotAsked", "Forced"
RUNS_THERE, NOT_KNOWN_THERE, CANT_ASK = "RunsThere", "NotKnownThere", "CantAsk"
ASKING = "Asking"


class ReclaimFacts(msgspec.Struct, frozen=True, kw_only=True):
    what: str  # vm/NAME
    found: MigrationReport  # of its node: by which migration, and to which target there, it was handed over
    cluster: str  # name of that cluster
    forced: bool = False
    cut: str = ""  # why nobody can be asked, while the line is cut or the link is gone
    barred: str = ""  # why that cluster can't be asked though there is a line
    project: str = ""  # the link's, there
    own_project: str = ""
    seen: SeenArrival | WeftError | None = None  # None: that cluster has no Arrival of this migration

    @property
    def asks(self) -> bool:
        """Whether the other cluster is asked at all."""
        return not (self.forced or self.cut or self.barred)


class ReclaimPlan(msgspec.Struct, kw_only=True, frozen=True):
    reason: str
    message: str
    goes_on: bool = False  # it is this cluster's own again
    waits: bool = False  # what people asked for stays open
    act: ArrivalAct | None = None  # before it goes on, or after


class Reclaim(msgspec.Struct, frozen=True):
    """A VM that people take back, with its facts, but for what the other cluster says."""

    workload: Item
    place: Item
    facts: ReclaimFacts


def list_reclaims(view: View) -> Iterator[Reclaim]:
    """Those whose node still says that it handed them over by the very migration that people mean."""
    for workload in view.find(VMS_RECLAIMED, ""):
        asked, known = workload.actions(VmActions).reclaim, workload.status(WorkloadStatus).handed_over
        for place in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid):
            report = place.report(AllocationReport)
            found = find_unknown_departure(place.spec(AllocationSpec), report, known)
            if asked is None or found is None or found.key != asked.key or workload.deleting or place.deleting:
                continue
            if not has_left_cluster(report):  # of that its name stays here, which the workload controller sees to
                yield Reclaim(workload, place, _read_facts(view, workload, found, forced=asked.force))


def _read_facts(view: View, workload: Item, found: MigrationReport, *, forced: bool) -> ReclaimFacts:
    cluster = found.peer.partition("/")[0]
    link = view.get(object_key(CLUSTER.name, None, cluster))
    unreachable, barred, project = "", "", ""
    if link is None or link.deleting:
        unreachable = describe_unlinked(cluster)
    else:
        status = link.status(ClusterStatus)
        project = link.spec(ClusterSpec).projects.get(workload.envelope.project or "", "")
        why = describe_link(cluster, status)
        if status.phase == UNREACHABLE:
            unreachable = why
        elif status.phase != LINKED:
            barred = why
        elif not project:
            barred = (
                f"the link with {cluster} has no project for this one: weft cluster set {cluster} --projects HERE=THERE"
            )
    return ReclaimFacts(
        what=f"vm/{workload.envelope.name}",
        found=found,
        cluster=cluster,
        forced=forced,
        cut=unreachable,
        barred=barred,
        project=project,
        own_project=workload.envelope.project or "",
    )


def plan_reclaim(facts: ReclaimFacts) -> ReclaimPlan:
    cluster, seen, what = facts.cluster, facts.seen, facts.what
    if facts.forced:
        return ReclaimPlan(reason=FORCED, message="people say that it runs nowhere else", goes_on=True)
    if facts.cut:
        message = f"people say that it runs nowhere else; {cluster} was not asked ({facts.cut})"
        return ReclaimPlan(reason=NOT_ASKED, message=message, goes_on=True)
    if facts.barred:
        return ReclaimPlan(reason=CANT_ASK, message=f"{cluster} can't be asked whether it runs there: {facts.barred}")
    if isinstance(seen, Unavailable):
        message = f"waits for {cluster}, which is asked whether it runs there: {cut(seen.message, MOST_TEXT)}"
        return ReclaimPlan(reason=ASKING, message=message, waits=True)
    if isinstance(seen, WeftError):
        message = f"{cluster} doesn't say whether it runs there: {cut(seen.message, MOST_TEXT)}"
        return ReclaimPlan(reason=CANT_ASK, message=message)
    if seen is None:
        message = (
            f"{cluster} has no arrival of it any more: it may run there, or have run, or that cluster's store was restored. "
            f"Look there; if {what} runs there: weft vm delete {what.partition('/')[2]} here"
        )
        return ReclaimPlan(reason=NOT_KNOWN_THERE, message=message)
    if seen.phase == ARRIVED:
        where = f" on {seen.node}" if seen.node else ""
        message = (
            f"{cluster} says that it arrived there{where}, so it runs there, or has run. "
            f"If {what} is there: weft vm delete {what.partition('/')[2]} here"
        )
        return ReclaimPlan(reason=RUNS_THERE, message=message)
    if seen.phase not in OVER:
        message = f"{cluster} says {seen.phase}, and is asked to take nothing in"
        return ReclaimPlan(
            reason=ASKING,
            message=message,
            waits=True,
            act=ArrivalAct("cancel", seen.name, facts.project, facts.own_project),
        )
    here = bool(facts.found.peer_allocation) and seen.allocation == facts.found.peer_allocation
    if here and seen.never_ran:
        message = f"{cluster} says that it never ran there"
        act = ArrivalAct("settle", seen.name, facts.project, facts.own_project)
        return ReclaimPlan(reason=NEVER_RAN, message=message, goes_on=True, act=act)
    message = f"{cluster} says {seen.phase}, but not of the place that {facts.found.peer} had for it: it may run there"
    return ReclaimPlan(reason=NOT_KNOWN_THERE, message=message)


def plan_commit(read: Reclaim, plan: ReclaimPlan, now: float) -> Commit | None:
    """None if nothing changes."""
    workload, place, found = read.workload, read.place, read.facts.found
    status: Literal["True", "False"] = "True" if plan.goes_on else "False"
    condition = Condition("Reclaimed", status, plan.reason, plan.message, now, workload.envelope.generation)
    if plan.waits and not set_condition(edit(workload), condition):
        return None
    draft, events = Draft(place), list[Event]()
    left = None if plan.waits else msgspec.structs.replace(workload.actions(VmActions), reclaim=None)
    draft.change(workload, actions=left, conditions=[condition])
    if plan.goes_on:
        draft.change(place, spec=come_back(place.spec(AllocationSpec), found.key))
        node = place.spec(AllocationSpec).node
        told = f"it goes on at {node}, which had handed it over to {found.peer}: {plan.message}"
        events.append(Event("Warning", "Reclaimed", told, workload.envelope.ref, SOURCE))
    elif not plan.waits:
        events.append(Event("Warning", "NotReclaimed", plan.message, workload.envelope.ref, SOURCE))
    return draft.commit(workload.key, events)
