"""Plans the egress endpoints of nodes: writes where each is, and deletes those that nothing needs. Pure.

A part of the controller of addresses. An egress endpoint goes when its node or network is gone, or when no function names the
network any more, no service in it is proxied, and the node doesn't report the endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.endpoint import ENDPOINTS_BY_NETWORK, ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus, is_egress
from weft.kinds.network import NETWORKS_BY_UID
from weft.kinds.node import NodeReport
from weft.kinds.parts.function_code import FUNCTIONS_BY_NETWORK, FunctionCode
from weft.kinds.service import PROXIED_BY_NETWORK, ServiceSpec
from weft.objects.envelope import merge_part
from weft.objects.identity import named_key, object_key


def route_egress_endpoints(view: View, change: Changed) -> Iterable[str]:
    """The keys of the egress endpoints that a change may concern."""
    match change.kind:
        case "endpoint":
            if change.new is not None and is_egress_endpoint(change.new):
                return (change.key,)
        case "node":
            if has_changed(change, lambda item: (item.uid, _reported(item))):
                nodes = {item.uid for item in (change.old, change.new) if item is not None}
                return [item.key for uid in nodes for item in view.find(ENDPOINTS_BY_WORKLOAD, uid)]
        case "network":
            if has_changed(change, lambda item: item.uid) and change.old is not None:
                return _standing_in(view, change.old)
        case "function" | "functionversion":
            if has_changed(change, lambda item: item.spec(FunctionCode).network) and change.old is not None:
                name = change.old.spec(FunctionCode).network
                network = view.get(object_key("network", change.old.envelope.project, name)) if name else None
                return _standing_in(view, network) if network is not None else ()
        case "service":
            if change.new is None and change.old is not None and change.old.spec(ServiceSpec).protocol == "http":
                named = named_key("network", change.old.envelope.project, change.old.spec(ServiceSpec).network)
                network = view.get(named)
                return _standing_in(view, network) if network is not None else ()
    return ()


def plan_egress_endpoint(view: View, endpoint: Item) -> list[Commit]:
    """The commits for one; none for a guest's endpoint."""
    if not is_egress_endpoint(endpoint):
        return []
    spec = endpoint.spec(EndpointSpec)
    node = view.get(object_key("node", None, spec.workload.name))
    if node is None or node.uid != spec.workload.uid:
        return [Commit(endpoint.key, [delete(endpoint)], [unchanged(endpoint)])]
    network = next(iter(view.find(NETWORKS_BY_UID, spec.network_uid)), None)
    stands = spec.network_uid in node.report(NodeReport).egress_endpoints
    if network is None or (not stands and not _is_used(view, network)):
        return [Commit(endpoint.key, [delete(endpoint)], [unchanged(endpoint), unchanged(node)])]
    status = EndpointStatus(node=node.envelope.name, node_address=node.report(NodeReport).address or None)
    if status == endpoint.status(EndpointStatus):
        return []
    envelope = edit(endpoint)
    envelope.status = merge_part(envelope.status, status)
    return [Commit(endpoint.key, [put(envelope)], [unchanged(endpoint)])]


def _is_used(view: View, network: Item) -> bool:
    return any(view.count(index, network.key) for index in (FUNCTIONS_BY_NETWORK, PROXIED_BY_NETWORK))


def is_egress_endpoint(endpoint: Item) -> bool:
    return is_egress(endpoint.spec(EndpointSpec))


def _standing_in(view: View, network: Item) -> list[str]:
    return [item.key for item in view.find(ENDPOINTS_BY_NETWORK, network.uid) if is_egress_endpoint(item)]


def _reported(node: Item) -> object:
    report = node.report(NodeReport)
    return report.address, report.egress_endpoints
