"""Gives each service its address, and finds its endpoints: which workloads its selector matches, which of them are ready, and how
new connections are split among them.

Reads services, workloads, deployments, allocations with their reports, networks, nodes, secrets; writes service.status, the
service's endpoint (its spec tells nodes where its address leads) and publishedport.status of its published ports. Woken by what
changes of these: a workload's change wakes the services that its labels may match.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.store import Absent, Precondition, Write
from weft.controllers.loop import Plan
from weft.controllers.service.facts import (
    find_network,
    note_departures,
    read_members,
    read_split,
    services_of_deployment,
)
from weft.controllers.service.plan import ServiceMember, plan_endpoints, round_shares
from weft.informer.addresses import AddressBook, AddressProblem, WorkloadNic, make_endpoint, which_joins
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.shares import describe_missing
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationReport, AllocationSpec
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.endpoint import (
    ENDPOINTS_BY_WORKLOAD,
    EndpointSpec,
    EndpointStatus,
    Served,
    ServedPort,
    ServedTarget,
)
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.fields.service.readiness import resolve_readiness
from weft.kinds.network import NetworkStatus
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.nic import Nic
from weft.kinds.parts.workload import WORKLOADS_BY_UID, WorkloadStatus
from weft.kinds.published_port import (
    PUBLISHED_PORTS_BY_WORKLOAD,
    PublishedNode,
    PublishedPortSpec,
    PublishedPortStatus,
)
from weft.kinds.registry import WORKLOADS, is_workload
from weft.kinds.service import (
    SERVICE,
    SERVICES_BY_LABEL,
    SERVICES_BY_NETWORK,
    SERVICES_BY_SECRET,
    SERVICES_BY_UID,
    SERVICES_WAITING,
    WAITING,
    ServiceEndpoint,
    ServiceSpec,
    ServiceStatus,
    first_tcp_port,
    read_ports,
    read_weights,
)
from weft.objects.envelope import merge_part
from weft.objects.identity import Ref, object_key
from weft.objects.lifecycle import Phase

LACKING_SECONDS = 5.0


class Services:
    name = "services"
    kinds = (
        *("service", "deployment", *WORKLOADS, "network", "endpoint", "publishedport", "allocation", "node", "secret"),
    )

    def __init__(self) -> None:
        self._book = AddressBook()
        self._reserved: list[EndpointSpec] = []  # by the plan before

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "service":
                return (change.key,)
            case "endpoint":
                self._book.notice_endpoint(change)
                return _service_of(view, change.item.spec(EndpointSpec).workload)
            case "deployment":
                if has_changed(change, lambda item: (item.uid, item.status(DeploymentStatus).split)):
                    return services_of_deployment(view, change.item)
            case "secret":
                return [item.key for item in view.find(SERVICES_BY_SECRET, change.key)]
            case "publishedport":
                return _service_of(view, change.item.spec(PublishedPortSpec).workload)
            case "network":
                if has_changed(change, which_joins):
                    return [item.key for item in view.find(SERVICES_BY_NETWORK, change.key)]
            case "allocation":
                if has_changed(change, _service_relevant_allocation_state):
                    found = view.find(WORKLOADS_BY_UID, change.item.spec(AllocationSpec).workload.uid)
                    return [key for workload in found for key in _services(view, workload)]
            case "node":
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).orphan_allocations)):
                    self._book.notice_node(change)
                keys = list[str]()
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).address)):
                    keys += _services_of_node(view, change.item.uid)
                return [*keys, *_services_that_wait(view, change)]
            case kind if is_workload(kind):
                if has_changed(change, _service_relevant_workload_state):
                    items = [item for item in (change.old, change.new) if item is not None]
                    return [key for item in items for key in _services(view, item)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        self._book.give_back(view, self._reserved)
        self._reserved.clear()
        plan = Plan()
        for key in dict.fromkeys(keys):
            service = view.get(key)
            if service is None or service.deleting:
                continue
            commit, lacks = self._plan_service(view, service, now)
            plan.commits += [commit] if commit is not None else []
            if lacks:  # nothing wakes it when an address becomes free
                plan.later[key] = LACKING_SECONDS
        return plan

    def _plan_service(self, view: View, service: Item, now: float) -> tuple[Commit | None, bool]:
        """The commit for a service, and whether it waits for an address."""
        network = find_network(view, service)
        if network is None or not network.status(NetworkStatus).vni:
            why = f'network "{service.spec(ServiceSpec).network}" '
            why += "is being created" if network is not None else describe_missing(service, _network_of(service))
            return plan_status(service, ServiceStatus(reason="networkNotReady", message=why), [], []), False
        members = note_departures(view, service, network, read_members(view, service, network), now)
        endpoints, more = plan_endpoints(
            members, read_weights(service.spec(ServiceSpec)), read_split(view, service, members)
        )
        served = make_served(service.spec(ServiceSpec), endpoints, name_certificate(view, service))
        writes: list[Write] = []
        preconditions: list[Precondition] = []
        endpoint = next(iter(view.find(ENDPOINTS_BY_WORKLOAD, service.uid)), None)
        if endpoint is None:
            nic = WorkloadNic(0, Nic(_network_of(service)), network, None)
            got = self._book.reserve(view, service, nic, set())
            if isinstance(got, AddressProblem):
                status = ServiceStatus(reason=got.reason, message=got.message)
                return plan_status(service, status, [], []), True
            assert got.reserved is not None
            self._reserved.append(got.reserved)
            made = msgspec.structs.replace(got.reserved, served=served)
            endpoint = make_endpoint(service, made, EndpointStatus(), now)
            writes.append(put(endpoint.envelope))
            preconditions += [Absent(endpoint.key), unchanged(network)]
        elif endpoint.spec(EndpointSpec).served != served:
            envelope = edit(endpoint)
            spec = endpoint.spec(EndpointSpec)
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, served=served))
            envelope.generation += 1
            writes.append(put(envelope))
            preconditions.append(unchanged(endpoint))
        address = endpoint.spec(EndpointSpec).address
        nodes = share_nodes(members, endpoints)
        if not nodes and service.spec(ServiceSpec).protocol == "http":
            nodes = list_nodes(members)  # their proxies say that no endpoint is ready
        leads = PublishedPortStatus(network_uid=network.uid, address=address, nodes=nodes)
        for port in view.find(PUBLISHED_PORTS_BY_WORKLOAD, service.uid):
            if port.status(PublishedPortStatus) != leads:
                envelope = edit(port)
                envelope.status = merge_part(envelope.status, leads)
                writes.append(put(envelope))
                preconditions.append(unchanged(port))
        return plan_status(service, make_status(endpoints, more, address, network.uid), writes, preconditions), False


def plan_status(
    service: Item, status: ServiceStatus, writes: list[Write], preconditions: list[Precondition]
) -> Commit | None:
    """The commit of ``writes`` and the service's status; None if nothing changes."""
    status.observed_generation = service.envelope.generation
    if status != service.status(ServiceStatus):
        envelope = edit(service)
        envelope.status = merge_part(envelope.status, status)
        writes = [*writes, put(envelope)]
    return Commit(service.key, writes, [*preconditions, unchanged(service)]) if writes else None


def make_status(endpoints: list[ServiceEndpoint], more: int, address: str, network_uid: str) -> ServiceStatus:
    status = ServiceStatus(address=address, network_uid=network_uid, endpoints=endpoints, more=more)
    status.phase = "Ready" if any(one.weight for one in endpoints) else "NoEndpoints"
    if not endpoints:
        status.reason, status.message = "noWorkloads", "no VM or container has the labels of its selector"
    elif status.phase == "NoEndpoints":
        first = next((one for one in endpoints if not one.retired), endpoints[0])
        status.reason = "noneReady"
        status.message = f"{first.workload.kind}/{first.workload.name}: {first.reason}"
    elif kept := sum(one.weight > 0 and not one.ready for one in endpoints):
        running = sum(one.weight > 0 for one in endpoints)
        status.reason = "silent"
        status.message = (
            f"{kept} of {running} endpoints don't answer their check, and keep their connections: hardly any answers"
        )
    elif more:
        status.reason = "tooMany"
        status.message = f"{more} more workloads match; only {len(endpoints)} can be endpoints"
    return status


def name_certificate(view: View, service: Item) -> str:
    """Name of the certificate that it speaks TLS with; "" for none."""
    spec = service.spec(ServiceSpec)
    if not spec.tls_secret:
        return spec.tls if spec.tls != "off" else ""
    secret = view.get(object_key("secret", service.envelope.project, spec.tls_secret))
    return f"{secret.uid}.{secret.envelope.generation}" if secret is not None else spec.tls_secret


def make_served(spec: ServiceSpec, endpoints: Iterable[ServiceEndpoint], certificate: str = "") -> Served:
    """Description of a service for nodes. Targets that get no connections are in it too: their nodes ask them. One leaves only
    until nodes have confirmed it, or their reports would grow with each.
    """
    ports = read_ports(spec)
    targets = []
    for one in endpoints:
        asks = one.leaves and one.departed_at is None
        if one.address:
            departure = one.departure if asks else 0
            targets.append(ServedTarget(address=one.address, weight=one.weight, leaves=asks, departure=departure))
    return Served(
        ports=[ServedPort(port=one.port, target=one.target, protocol=one.protocol) for one in ports],
        targets=sorted(targets, key=lambda one: one.address),
        sticky=spec.sticky == "client",
        http=spec.protocol == "http",
        certificate=certificate,
        readiness=resolve_readiness(spec.readiness, first_tcp_port(ports)),
    )


def share_nodes(members: Iterable[ServiceMember], endpoints: Iterable[ServiceEndpoint]) -> list[PublishedNode]:
    """How connections to a published port are split among the nodes with endpoints."""
    places = {one.workload.uid: one.node_address for one in members}
    weights: dict[str, int] = {}
    for one in endpoints:
        address = places.get(one.workload.uid, "")
        if one.weight and address:
            weights[address] = weights.get(address, 0) + one.weight
    shares = round_shares(list(weights.values()))
    found = zip(weights, shares, strict=True)
    return sorted((PublishedNode(address=a, weight=w) for a, w in found), key=lambda one: one.address)


def list_nodes(members: Iterable[ServiceMember]) -> list[PublishedNode]:
    """The nodes with workloads of a service, all alike."""
    found = sorted({one.node_address for one in members if one.node_address})
    return [PublishedNode(address=a, weight=w) for a, w in zip(found, round_shares([1.0] * len(found)), strict=True)]


def _network_of(service: Item) -> str:
    return service.spec(ServiceSpec).network


def _service_of(view: View, owner: Ref) -> list[str]:
    """The owner of an endpoint or of a published port, if that is a service."""
    key = object_key(SERVICE.name, owner.project, owner.name)
    found = view.get(key)
    return [key] if found is not None and found.uid == owner.uid else []


def _services(view: View, workload: Item) -> list[str]:
    """The services whose selector's first label the workload has."""
    words = words_of_labels(workload.envelope.project, workload.envelope.labels)
    return [item.key for word in words for item in view.find(SERVICES_BY_LABEL, word)]


def _services_of_node(view: View, node_uid: str) -> list[str]:
    uids = {item.spec(AllocationSpec).workload.uid for item in view.find(ALLOCATIONS_BY_NODE, node_uid)}
    workloads = [item for uid in sorted(uids) for item in view.find(WORKLOADS_BY_UID, uid)]
    return [key for workload in workloads for key in _services(view, workload)]


def _services_that_wait(view: View, change: Changed) -> list[str]:
    """The services that may have waited for this change of a node, for one of their endpoints leaves."""
    if has_changed(change, lambda node: (node.uid, node.status(NodeStatus).phase)):
        return [item.key for item in view.find(SERVICES_WAITING, WAITING)]
    old, new = (set(one.report(NodeReport).departed) if one is not None else set() for one in (change.old, change.new))
    uids = {name.partition("/")[0] for name in new - old}
    return [item.key for uid in sorted(uids) for item in view.find(SERVICES_BY_UID, uid)]


def _service_relevant_allocation_state(allocation: Item) -> object:
    """The part of an allocation that decides whether and where it is an endpoint."""
    spec, report = allocation.spec(AllocationSpec), allocation.report(AllocationReport)
    where = (allocation.uid, spec.role, spec.node_uid, spec.nics, spec.desired, spec.desired_count, spec.incarnation)
    how = (report.state, report.incarnation, report.desired_count, report.ready, report.health, report.readiness)
    return where, how


def _service_relevant_workload_state(workload: Item) -> object:
    """The part of a workload that decides whether and where it is an endpoint."""
    lost = workload.status(WorkloadStatus).phase == Phase.UNKNOWN
    return workload.uid, workload.deleting, workload.envelope.labels, spec_of(workload).run, lost
