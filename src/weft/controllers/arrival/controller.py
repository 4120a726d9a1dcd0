"""Leads each Arrival on, from its target's place to the guest that runs here, or to the word that it never did.

Reads Arrivals, VMs, allocations, nodes, clusters; writes Arrival.status, of the VM that ``arrives`` is over, or that it goes, and
its target: what it desires and its role. Releases the finalizer "arrival". Woken by any of those. ``plan_arrival`` decides; the API
server has made the VM with its volumes, and the scheduler makes the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.allocation.active import active_allocation
from weft.controllers.arrival.plan import ArrivalFacts, ArrivalPlan, plan_arrival
from weft.controllers.loop import Plan
from weft.controllers.migration.controller import read_endpoint
from weft.informer.commit import Commit, Draft, let_go, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, ALLOCATIONS_BY_WORKLOAD, AllocationSpec
from weft.kinds.arrival import (
    ARRIVALS_BY_CLUSTER,
    ARRIVALS_BY_KEY,
    ARRIVALS_BY_WORKLOAD,
    ARRIVED,
    FAILED,
    FROM_ARRIVAL,
    OVER,
    ArrivalActions,
    ArrivalSpec,
    ArrivalStatus,
    name_source,
    workload_key,
)
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.endpoint import ENDPOINTS_BY_NETWORK, ENDPOINTS_BY_WORKLOAD, EndpointSpec, describe_taken_mac
from weft.kinds.fields.cluster.link import MIGRATE
from weft.kinds.node import NODES_BY_ORPHAN, NodeStatus
from weft.kinds.parts.workload import WorkloadMarks
from weft.objects.identity import object_key

FINALIZER, SOURCE = "arrival", "arrivals"


class Arrivals:
    name = SOURCE
    kinds = ("arrival", "vm", "allocation", "node", "cluster")

    def __init__(self, find_silent: Callable[[], list[str]]) -> None:
        self._find_silent = find_silent  # the nodes that have not reported since a restore

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "arrival":
                return (change.key,)
            case "vm":
                return [item.key for item in view.find(ARRIVALS_BY_WORKLOAD, change.key)]
            case "allocation":
                return _route_allocations(view, [item for item in (change.old, change.new) if item is not None])
            case "node":
                if has_changed(change, lambda item: (item.uid, item.status(NodeStatus).phase)):
                    return _route_allocations(view, view.find(ALLOCATIONS_BY_NODE, change.item.uid))
            case "cluster":
                if has_changed(change, lambda item: (item.envelope.spec, item.envelope.actions, item.deleting)):
                    return [item.key for item in view.find(ARRIVALS_BY_CLUSTER, change.item.envelope.name)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, silent = Plan(), self._find_silent() if keys else []
        for key in keys:
            arrival = view.get(key)
            if arrival is None:
                continue
            commit, later = plan_one(view, arrival, now, silent)
            plan.commits += [commit] if commit is not None else []
            if later is not None:
                plan.later[key] = later
        return plan


def _route_allocations(view: View, allocations: Iterable[Item]) -> list[str]:
    migrations = [item.spec(AllocationSpec).migration for item in allocations]
    keys = sorted({one.key for one in migrations if one is not None})
    return [item.key for key in keys for item in view.find(ARRIVALS_BY_KEY, key)]


def plan_one(view: View, arrival: Item, now: float, silent: Sequence[str] = ()) -> tuple[Commit | None, float | None]:
    """The commit, and when to plan again though nothing changes."""
    workload = find_workload(view, arrival)
    target = find_target(view, arrival)
    plan = plan_arrival(read_facts(view, arrival, workload, target, now, silent))
    if plan.release:
        return Commit(arrival.key, [let_go(arrival, FINALIZER)], [unchanged(arrival)]), None
    # The VM is part of what was read: a place that the scheduler gives it meanwhile makes this fail.
    draft = Draft(arrival, *(item for item in (workload, target) if item is not None))
    former = arrival.status(ArrivalStatus)
    if plan.status != former or plan.forgets:
        draft.change(arrival, status=plan.status, deleting_since=now if plan.forgets else None)
    if target is not None and (plan.target is not None or plan.goes):
        draft.change(target, spec=plan.target, deleting_since=now if plan.goes else None)
    if workload is not None and plan.arrives:
        draft.change(workload, marks=msgspec.structs.replace(workload.marks(WorkloadMarks), arrives=""))
    elif workload is not None and plan.goes and not workload.deleting:
        draft.change(workload, deleting_since=now)
    if plan.goes:
        _drop_volumes(view, draft, arrival, workload, now)
    return draft.commit(arrival.key, list_events(arrival, former, plan, workload)), plan.later


def _drop_volumes(view: View, draft: Draft, arrival: Item, workload: Item | None, now: float) -> None:
    """The volumes that came into being with the VM hold nothing that anyone has written."""
    if workload is None:
        return
    for name in arrival.spec(ArrivalSpec).volumes:
        volume = view.get(object_key("volume", arrival.envelope.project, name))
        made_with_it = volume is not None and volume.envelope.labels.get(FROM_ARRIVAL) == arrival.envelope.name
        if volume is not None and made_with_it and not volume.deleting:
            draft.change(volume, deleting_since=now)


def find_workload(view: View, arrival: Item) -> Item | None:
    """The VM that came into being with it."""
    found, status = view.get(workload_key(arrival)), arrival.status(ArrivalStatus)
    if found is None:
        return None
    same = found.uid == status.vm if status.vm else found.marks(WorkloadMarks).arrives == arrival.envelope.name
    return found if same else None


def find_target(view: View, arrival: Item) -> Item | None:
    workload, status = find_workload(view, arrival), arrival.status(ArrivalStatus)
    uid = workload.uid if workload is not None else status.vm
    for item in view.find(ALLOCATIONS_BY_WORKLOAD, uid) if uid else ():
        migration = item.spec(AllocationSpec).migration
        if migration is not None and migration.key == arrival.spec(ArrivalSpec).key:
            return item
    return None


def read_facts(
    view: View, arrival: Item, workload: Item | None, target: Item | None, now: float, silent: Sequence[str] = ()
) -> ArrivalFacts:
    source = name_source(arrival.envelope.creator)
    link = view.get(object_key(CLUSTER.name, None, source))
    active = active_allocation(view, workload.uid) if workload is not None else None
    place = target or active
    orphaned = [node.envelope.name for node in view.find(NODES_BY_ORPHAN, workload_key(arrival))]
    return ArrivalFacts(
        spec=arrival.spec(ArrivalSpec),
        actions=arrival.actions(ArrivalActions),
        status=arrival.status(ArrivalStatus),
        cluster=source,
        begun_at=arrival.envelope.created_at,
        deleting=arrival.deleting,
        unlinked=_find_why_unlinked(link, source, arrival.envelope.project or ""),
        gone=link is None or link.deleting,
        workload=workload.uid if workload is not None else "",
        leaving=workload is not None and workload.deleting,
        placed=workload.envelope.condition("Placed") if workload is not None else None,
        target=read_endpoint(view, target),
        allocation=place.uid if place is not None else "",
        active=read_endpoint(view, active),
        unsure=", ".join(dict.fromkeys((*silent, *orphaned))),
        taken=_find_taken(view, arrival, workload) if workload is not None else "",
        now=now,
    )


def _find_taken(view: View, arrival: Item, workload: Item) -> str:
    """The MAC of the VM that another workload got at the same moment, or ''. ``view`` has all that was committed before the
    Arrival; what is committed later sees its MACs. So this is certain before the source learns where to send.
    """
    if arrival.status(ArrivalStatus).address:
        return ""
    for own in (item.spec(EndpointSpec) for item in view.find(ENDPOINTS_BY_WORKLOAD, workload.uid)):
        for other in (item.spec(EndpointSpec) for item in view.find(ENDPOINTS_BY_NETWORK, own.network_uid)):
            if other.mac == own.mac and other.workload.uid != workload.uid:
                return describe_taken_mac(other, arrival.envelope.project)
    return ""


def _find_why_unlinked(link: Item | None, source: str, project: str) -> str:
    if link is None or link.deleting:
        return f"the link with cluster {source} was ended"
    spec = link.spec(ClusterSpec)
    if MIGRATE not in spec.grants:
        return f"cluster {source} isn't granted {MIGRATE} here any more"
    return "" if project in spec.projects else f"the link with cluster {source} has project {project} no more"


def list_events(arrival: Item, former: ArrivalStatus, plan: ArrivalPlan, workload: Item | None) -> list[Event]:
    """The event of a new phase; that it has arrived is one of the VM, too."""
    status, spec = plan.status, arrival.spec(ArrivalSpec)
    if status.phase == former.phase:
        return []
    where = f" on {status.node}" if status.node else ""
    text = f"{spec.of} runs here{where}" if status.phase == ARRIVED else f"{status.phase}{where}"
    why = f": {status.message}" if status.message and status.phase in OVER else ""
    kind: Literal["Normal", "Warning"] = "Warning" if status.phase == FAILED else "Normal"
    events = [Event(kind, status.phase, f"{text}{why}", arrival.envelope.ref, SOURCE)]
    if status.phase == ARRIVED and workload is not None:
        pause = f", downtime {status.pause_ms} ms" if status.pause_ms else ""
        came = f"it migrated here from {name_source(arrival.envelope.creator)}/{spec.node}{where}{pause}"
        events.append(Event("Normal", ARRIVED, came, workload.envelope.ref, SOURCE))
    return events
