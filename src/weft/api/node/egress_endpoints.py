"""Egress endpoints: a node's own address in a network, by which instances of functions and the proxies of services reach it; made
when the node asks.

The address is an Endpoint like a workload's, so it is given only once; the node is its workload and its owner. It is the highest
free address, while workloads get the lowest. The controller of egress endpoints deletes it.
"""

from __future__ import annotations

import ipaddress

import msgspec

from weft.api.admission.commit import read_again, retry
from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.contracts.store import Absent, Present, Put
from weft.kinds.allocation import AllocatedNic
from weft.kinds.endpoint import ENDPOINT, EndpointSpec, EndpointStatus, endpoint_name
from weft.kinds.network import NetworkSpec, NetworkStatus, read_cidr
from weft.kinds.node import NodeReport
from weft.kinds.parts.function_code import FunctionCode, networks_of_code
from weft.kinds.parts.nic import mac_of, make_nic
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.errors import Forbidden, InvalidInput, NotFound, Unavailable
from weft.objects.identity import Ref, object_key
from weft.protocol.report import EgressEndpointInput
from weft.serving.answer import Answer


async def egress(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:egress``, by the node itself: its address, as a NIC, in a network that a function or a service with
    protocol http names."""
    await require_own(context, call, name)
    call.query()
    try:
        asked = msgspec.json.decode(await call.read_body(), type=EgressEndpointInput)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidInput("give project, and the network's uid as network") from None
    network = await _find_network(context, asked)
    await _require_use(context, network)
    endpoint = await retry(context, lambda: _ensure(context, Ref("node", name, call.actor.id), network))
    return json_answer(msgspec.to_builtins(_make_nic(endpoint, network)))


async def _find_network(context: ApiContext, asked: EgressEndpointInput) -> Envelope:
    for network in await _list(context, "network", asked.project, ""):
        if network.uid == asked.network and network.deleting_since is None:
            if not decode_part(network.status, NetworkStatus).vni:
                raise Unavailable(f"network {network.name} is being created", retry_after_seconds=1)
            return network
    raise NotFound(f"project {asked.project[:80]} has no network {asked.network[:80]}")


async def _require_use(context: ApiContext, network: Envelope) -> None:
    """Raise Forbidden unless a function names the network, or a service with protocol http has its address there."""
    for endpoint in await _list(context, "endpoint", None, f"{network.uid}."):
        served = decode_part(endpoint.spec, EndpointSpec).served
        if served is not None and served.http:
            return
    for kind in ("function", "functionversion"):
        for found in await _list(context, kind, network.project, ""):
            if network.name in networks_of_code(decode_part(found.spec, FunctionCode)):
                return
    raise Forbidden(f"no function and no service uses network {network.name}")


async def _ensure(context: ApiContext, node: Ref, network: Envelope) -> Envelope:
    """The node's endpoint, created if there is none. Raises Unavailable when the network is full."""
    endpoints = await _list(context, "endpoint", None, f"{network.uid}.")
    for endpoint in endpoints:
        if _workload(endpoint) == node.uid:
            return endpoint
    taken = {int(ipaddress.IPv4Address(decode_part(found.spec, EndpointSpec).address)) for found in endpoints}
    range_ = read_cidr(decode_part(network.spec, NetworkSpec).cidr)
    number = int(range_.broadcast_address) - 1
    while number in taken:
        number -= 1
    if number <= int(range_.network_address) + 1:  # the gateway's
        raise Unavailable(
            f"network {network.name} ({range_}) has no address left for node {node.name}",
            reason="networkFull",
            hint="delete what the network no longer needs",
        )
    address = str(ipaddress.IPv4Address(number))
    there = await read_again(context, object_key("node", None, node.name))
    report = decode_part(there.report, NodeReport) if there is not None else NodeReport()
    spec = EndpointSpec(
        workload=node,
        network=network.name,
        network_uid=network.uid,
        index=0,
        mac=mac_of(address),
        address=address,
    )
    status = EndpointStatus(node=node.name, node_address=report.address or None)
    name = endpoint_name(network.uid, address)
    endpoint = ENDPOINT.make(name, spec, context.clock.now(), owner=node, status=status)
    key = object_key("node", None, node.name)
    await context.store.commit(
        [Put(endpoint.key, encode_envelope(endpoint))], [Absent(endpoint.key), Present(network.key), Present(key)]
    )
    return endpoint


async def _list(context: ApiContext, kind: str, project: str | None, prefix: str) -> list[Envelope]:
    page = await context.store.list(object_key(kind, project, prefix))
    return [decode_envelope(entry.value, entry.revision) for entry in page.entries]


def _workload(endpoint: Envelope) -> str:
    return decode_part(endpoint.spec, EndpointSpec).workload.uid


def _make_nic(endpoint: Envelope, network: Envelope) -> AllocatedNic:
    spec, status = decode_part(network.spec, NetworkSpec), decode_part(network.status, NetworkStatus)
    return make_nic(endpoint, decode_part(endpoint.spec, EndpointSpec), network, spec, status)


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:egress",
        egress,
        "A node's address in a network that a function or an HTTP service reaches, by the node itself",
        where="nodes",
        takes=EgressEndpointInput,
        answers=AllocatedNic,
    ),
)
