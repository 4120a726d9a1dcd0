"""The view's facts about a service: its network, and the workloads that its selector matches. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.controllers.allocation.active import active_allocation
from weft.controllers.service.plan import DRAINING, ServiceMember, Split
from weft.informer.shares import find_named
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_current
from weft.kinds.deployment import DEPLOYMENT, DeploymentSpec
from weft.kinds.disruption_budget import words_of_labels
from weft.kinds.endpoint import ENDPOINTS_BY_NETWORK, EndpointStatus
from weft.kinds.fields.deployment.instance import DEPLOYMENT_LABEL, DRAINING_LABEL, PARKED_LABEL, REVISION_LABEL
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.fields.service.readiness import MOST_CHECKED, is_service, resolve_readiness
from weft.kinds.node import NODES_BY_UID, NodeReport, NodeStatus, name_departure
from weft.kinds.parts.workload import WORKLOADS_BY_LABEL, WorkloadStatus
from weft.kinds.service import (
    NOT_CHECKED,
    SERVICES_BY_LABEL,
    ServiceSpec,
    ServiceStatus,
    first_tcp_port,
    is_matched,
    read_ports,
)
from weft.objects.identity import named_key, object_key
from weft.objects.lifecycle import Phase

TOO_MANY_SERVICES = (
    f"{MOST_CHECKED} other services check it, which is the most: use readiness type none, or fewer services"
)


def find_network(view: View, service: Item) -> Item | None:
    """Its network once that has its number on the wire. One that it has its address in stays its own, shared or not."""
    name = service.spec(ServiceSpec).network
    own = view.get(named_key("network", service.envelope.project, name))
    if own is not None and own.uid == service.status(ServiceStatus).network_uid:
        return own
    return find_named(view, service, "network", name)


def read_members(view: View, service: Item, network: Item) -> list[ServiceMember]:
    """The workloads that match, in no order."""
    asked, project = service.spec(ServiceSpec), service.envelope.project
    selector = asked.selector
    unasked = resolve_readiness(asked.readiness, first_tcp_port(read_ports(asked))).type == "none"
    before = {one.workload.uid: one.ready or one.weight > 0 for one in service.status(ServiceStatus).endpoints}
    return [
        read_member(view, service, network, workload, was_ready=unasked or before.get(workload.uid, False))
        for workload in view.find(WORKLOADS_BY_LABEL, words_of_labels(project, selector)[0])
        if is_matched(selector, workload.envelope.labels) and not _is_parked(view, workload)
    ]


def _is_parked(view: View, workload: Item) -> bool:
    """Whether it is only kept for an undo, and doesn't run any more."""
    if PARKED_LABEL not in workload.envelope.labels or spec_of(workload).run == "run":
        return False
    allocation = active_allocation(view, workload.uid)
    return allocation is None or allocation.report(AllocationReport).state not in ("running", "stopping")


def read_member(view: View, service: Item, network: Item, workload: Item, *, was_ready: bool) -> ServiceMember:
    labels = workload.envelope.labels
    found = ServiceMember(
        workload=workload.envelope.ref,
        reachable=False,
        labels=labels,
        leaves=DRAINING if workload.deleting or DRAINING_LABEL in labels or spec_of(workload).run != "run" else "",
        retired=workload.deleting or DRAINING_LABEL in labels or PARKED_LABEL in labels,
        deployment=labels.get(DEPLOYMENT_LABEL, ""),
        revision=labels.get(REVISION_LABEL, ""),
    )
    allocation = active_allocation(view, workload.uid)
    if allocation is None:
        return _with(found, trouble="it has no place yet", runs=False)
    spec = allocation.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    found = _with(found, node=spec.node, node_address=nodes[0].report(NodeReport).address if nodes else "")
    address = next((nic.address for nic in spec.nics if nic.network_uid == network.uid), "")
    if not address:
        return _with(found, trouble=f"it has no NIC in network {service.spec(ServiceSpec).network}", runs=False)
    report = allocation.report(AllocationReport)
    found = _with(found, reachable=report.state in ("running", "stopping"))
    if trouble := _find_trouble(workload, spec, report):
        return _with(found, address=address, trouble=trouble, runs=False)
    said = report.readiness.get(service.uid)
    unready = _find_unready(report, service.uid, was_ready=was_ready)
    return _with(found, address=address, trouble=unready, silent=said is not None and said.silent and not said.ready)


def note_departures(
    view: View, service: Item, network: Item, members: list[ServiceMember], now: float
) -> list[ServiceMember]:
    """``members``; of those that leave with the time since which no node sends them new connections. Each departure has a number:
    a node that sends connections again may still report an earlier one."""
    if not any(one.leaves for one in members):
        return members
    before = {one.workload.uid: one for one in service.status(ServiceStatus).endpoints}
    sending: list[set[str]] | None = None  # listed only if something has yet to be confirmed
    found = []
    for one in members:
        known = before.get(one.workload.uid)
        at = known.departed_at if known is not None and one.leaves else None
        departure = 0
        if one.leaves:
            departure = known.departure if known is not None and known.leaves else round(now * 1000)
        if one.leaves and at is None:
            if not one.reachable:
                at = now
            elif known is not None and known.leaves:  # nodes have been told since it was written
                sending = _list_departures(view, network) if sending is None else sending
                name = name_departure(service.uid, one.address, departure)
                at = now if all(name in departed for departed in sending) else None
        found.append(
            _with(one, departed_at=at, departure=departure, is_endpoint=one.leaves != "" and known is not None)
        )
    return found


def _list_departures(view: View, network: Item) -> list[set[str]]:
    """Departures that each node reports which sends connections to services in ``network``, and is there."""
    endpoints = view.find(ENDPOINTS_BY_NETWORK, network.uid)
    names = {name for one in endpoints if (name := one.status(EndpointStatus).node) is not None}
    nodes = [node for name in sorted(names) if (node := view.get(object_key("node", None, name))) is not None]
    return [set(node.report(NodeReport).departed) for node in nodes if node.status(NodeStatus).phase != "NotReady"]


def read_split(view: View, service: Item, members: Sequence[ServiceMember]) -> Split:
    """How the deployments of ``members`` split requests among their revisions, those that do."""
    found: dict[str, dict[str, int]] = {}
    for name in {one.deployment for one in members if one.deployment}:
        deployment = view.get(object_key(DEPLOYMENT.name, service.envelope.project, name))
        shares = deployment.status(DeploymentStatus).split if deployment is not None else []
        if shares:
            found[name] = {str(share.revision): share.per_mille for share in shares}
    return found


def services_of_deployment(view: View, deployment: Item) -> list[str]:
    """The services that may match instances of a deployment."""
    of, spec = deployment.envelope, deployment.spec(DeploymentSpec)
    labels = {DEPLOYMENT_LABEL: of.name, **spec.labels}
    for revision in deployment.status(DeploymentStatus).revisions:
        labels |= revision.labels
    return [item.key for word in words_of_labels(of.project, labels) for item in view.find(SERVICES_BY_LABEL, word)]


def _find_trouble(workload: Item, spec: AllocationSpec, report: AllocationReport) -> str:
    """Why it can't be ready, whatever its readiness check says."""
    if workload.status(WorkloadStatus).phase == Phase.UNKNOWN:
        return f"node {spec.node} is lost"
    if spec.desired != "run" or report.state != "running":
        return f"it is {'stopping' if report.state == 'running' else report.state}"
    if report.incarnation < spec.incarnation or not is_current(spec, report):
        return "it starts"
    if report.ready is False:
        return "its system is still starting"
    if report.health in ("starting", "unhealthy"):
        return f"its health check says {report.health}"
    return ""


def _find_unready(report: AllocationReport, service_uid: str, *, was_ready: bool) -> str:
    """Why it isn't ready. What its node has not said yet (it migrated, or its agent restarted) is as it was."""
    said = report.readiness.get(service_uid)
    if said is None and not was_ready:
        return TOO_MANY_SERVICES if sum(map(is_service, report.readiness)) >= MOST_CHECKED else NOT_CHECKED
    if said is None:
        return ""
    return "" if said.ready else said.message or "it is not ready"


def _with(member: ServiceMember, **fields: str | bool | float | None) -> ServiceMember:
    return msgspec.structs.replace(member, **fields)
