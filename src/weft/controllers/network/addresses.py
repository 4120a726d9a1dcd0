"""Writes where workloads' NICs and published ports are, and gives an address to each NIC that has none from the scheduler.

The scheduler gives a workload its first addresses together with its place. A workload that has a place and joins another network
gets its address here, and so does one that is held or stopped; addresses that no workload names any more are released. It keeps
nodes' egress endpoints, too (``egress_endpoints``).
Reads workloads, networks, endpoints, published ports, allocations, nodes, functions, services; writes endpoints,
publishedport.status and the condition Addressed. Woken by workloads, networks that become ready, allocations that come or go, nodes
that change addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.contracts.store import Absent, Precondition, Write
from weft.controllers.allocation.active import active_allocation
from weft.controllers.function.egress_endpoints import plan_egress_endpoint, route_egress_endpoints
from weft.controllers.loop import Plan
from weft.informer.addresses import (
    AddressBook,
    AddressProblem,
    WorkloadNic,
    awaits_place,
    make_addressed,
    make_endpoint,
    read_nics,
    which_joins,
)
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationSpec
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.workload import WORKLOADS_BY_NETWORK, WORKLOADS_BY_UID
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD, PublishedPortSpec, PublishedPortStatus
from weft.kinds.registry import WORKLOADS, is_workload
from weft.objects.envelope import merge_part, set_condition
from weft.objects.identity import object_key

SOURCE = "addresses"
LACKING_SECONDS = 5.0


class Addresses:
    name = "addresses"
    kinds = (
        *WORKLOADS,
        *("network", "endpoint", "publishedport", "allocation", "node", "function", "functionversion", "service"),
    )

    def __init__(self) -> None:
        self._book = AddressBook()
        self._reserved: list[EndpointSpec] = []  # by the plan before

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return [*self._route_workloads(view, change), *route_egress_endpoints(view, change)]

    def _route_workloads(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "endpoint":
                self._book.notice_endpoint(change)
                return _workloads(view, change.item.spec(EndpointSpec).workload.uid)
            case "publishedport":
                return _workloads(view, change.item.spec(PublishedPortSpec).workload.uid)
            case "allocation":
                if has_changed(change, _leads_to):
                    return _workloads(view, change.item.spec(AllocationSpec).workload.uid)
            case "network":
                if has_changed(change, which_joins):
                    return [item.key for item in view.find(WORKLOADS_BY_NETWORK, change.key)]
            case "node":
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).orphan_allocations)):
                    self._book.notice_node(change)
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).address)):
                    allocations = view.find(ALLOCATIONS_BY_NODE, change.item.uid)
                    return [key for a in allocations for key in _workloads(view, a.spec(AllocationSpec).workload.uid)]
            case kind if is_workload(kind):
                if has_changed(change, _spec_state):
                    return (change.key,)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        self._book.give_back(view, self._reserved)
        self._reserved.clear()
        plan = Plan()
        for key in keys:
            workload = view.get(key)
            if workload is not None and workload.envelope.kind == "endpoint":
                plan.commits += plan_egress_endpoint(view, workload)
            elif workload is not None and not workload.deleting:
                commit, lacks = self._plan_workload(view, workload, now)
                if commit is not None:
                    plan.commits.append(commit)
                if lacks:  # nothing wakes the workload when a taken address becomes free
                    plan.later[key] = LACKING_SECONDS
        return plan

    def _plan_workload(self, view: View, workload: Item, now: float) -> tuple[Commit | None, bool]:
        """The commit for a workload, and whether it waits for a taken address."""
        writes: list[Write] = []
        preconditions: list[Precondition] = []
        spec = spec_of(workload)
        endpoints = list(view.find(ENDPOINTS_BY_WORKLOAD, workload.uid))
        if not spec.networks and not endpoints and not spec.publish and _is_addressed(workload):
            return None, False
        allocation = active_allocation(view, workload.uid)
        place = _read_place(view, workload, allocation)
        found, problem = read_nics(view, workload)
        with_address = [nic for nic in found if nic.endpoint is not None]
        by_scheduler = awaits_place(view, workload) and len(with_address) < len(spec.networks)
        nics = with_address
        if not by_scheduler:
            nics, lack = self._reserve(view, workload, found, {item.spec(EndpointSpec).mac for item in endpoints})
            problem = problem or lack
        for nic in nics:
            if nic.reserved is not None:
                made = make_endpoint(workload, nic.reserved, place, now)
                writes.append(put(made.envelope))
                # A VM that arrives with a MAC of its own writes its network: then the free MACs are looked at again.
                preconditions += [unchanged(workload), Absent(made.key), unchanged(nic.network)]
        wanted = {nic.endpoint.uid for nic in nics if nic.endpoint is not None}
        in_use = {nic.uid for nic in allocation.spec(AllocationSpec).nics} if allocation is not None else set()
        for endpoint in endpoints:
            if endpoint.uid not in wanted and endpoint.uid not in in_use and problem is None:
                writes.append(delete(endpoint))
                preconditions += [unchanged(workload), unchanged(endpoint)]
            elif endpoint.status(EndpointStatus) != place:
                writes.append(_write_status(endpoint, place))
                preconditions.append(unchanged(endpoint))
        first_network, first_address = _first_nic(allocation)
        for published_port in view.find(PUBLISHED_PORTS_BY_WORKLOAD, workload.uid):
            leads = PublishedPortStatus(
                node=place.node, node_address=place.node_address, network_uid=first_network, address=first_address
            )
            if published_port.status(PublishedPortStatus) != leads:
                writes.append(_write_status(published_port, leads))
                preconditions.append(unchanged(published_port))
        events: list[Event] = []
        lacks = problem is not None and problem.lasts
        envelope = edit(workload)
        if not by_scheduler and set_condition(envelope, make_addressed(workload, nics, problem, now)):
            writes.append(put(envelope))
            preconditions.append(unchanged(workload))
            if problem is not None and lacks:
                events.append(Event("Warning", problem.reason, problem.message, workload.envelope.ref, SOURCE))
        if not writes:
            return None, lacks
        return Commit(workload.key, writes, list(dict.fromkeys(preconditions)), events), lacks

    def _reserve(
        self, view: View, workload: Item, found: Sequence[WorkloadNic], own_macs: set[str]
    ) -> tuple[list[WorkloadNic], AddressProblem | None]:
        """The NICs that have an address, or get one now, and why the first of the others can't."""
        nics, problem = [], None
        for nic in found:
            got = nic if nic.endpoint is not None else self._book.reserve(view, workload, nic, own_macs)
            if isinstance(got, AddressProblem):
                problem = problem or got
                continue
            nics.append(got)
            if got.reserved is not None:
                self._reserved.append(got.reserved)
        return nics, problem


def _leads_to(allocation: Item) -> object:
    """The parts of an allocation that locate its NICs: the role too, so that a migration's swap of roles is seen."""
    spec = allocation.spec(AllocationSpec)
    return allocation.uid, spec.role, spec.nics


def _spec_state(workload: Item) -> object:
    return (workload.uid, workload.envelope.generation, workload.deleting, workload.envelope.condition("Addressed"))


def _workloads(view: View, uid: str) -> list[str]:
    return [item.key for item in view.find(WORKLOADS_BY_UID, uid)]


def _read_place(view: View, workload: Item, allocation: Item | None) -> EndpointStatus:
    if allocation is None:
        return EndpointStatus()
    keys = (object_key("securitygroup", workload.envelope.project, name) for name in spec_of(workload).security_groups)
    groups = sorted(group.uid for key in keys if (group := view.get(key)) is not None)
    spec = allocation.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    address = (nodes[0].report(NodeReport).address if nodes else "") or None
    return EndpointStatus(node=spec.node, node_address=address, groups=groups)


def _first_nic(allocation: Item | None) -> tuple[str | None, str | None]:
    """Network uid and address of the NIC that published ports lead to."""
    nics = allocation.spec(AllocationSpec).nics if allocation is not None else []
    return (nics[0].network_uid, nics[0].address) if nics else (None, None)


def _write_status(item: Item, status: EndpointStatus | PublishedPortStatus) -> Write:
    envelope = edit(item)
    envelope.status = merge_part(envelope.status, status)
    return put(envelope)


def _is_addressed(workload: Item) -> bool:
    condition = workload.envelope.condition("Addressed")
    return condition is not None and condition.status == "True" and condition.generation == workload.envelope.generation
