"""The effect of the network contract's values: the meaning of the rules that a driver gives to its kernel. Pure.

The agent makes filters here, a driver ends the connections that they no longer allow, and the API explains them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import msgspec

from weft.contracts.driver.network import Allowed, Endpoint, Filter
from weft.kinds.allocation import AllocatedGroup, AllocatedNic, AllocatedRule
from weft.kinds.network import read_open
from weft.objects.errors import InvalidInput
from weft.objects.identity import short_id

# Between a node and its routers: link-local, so no tenant's or site's range can be it; kept clear of 169.254.169.254, where clouds
# answer. One /31 per segment. What comes to a guest by a published port, from its own node, has the node's address there.
UPLINKS = IPv4Network("169.254.64.0/18")
LINK_LOCAL = IPv4Network("169.254.0.0/16")  # no guest reaches these beyond its network
DNS = 53


class NewFlow(msgspec.Struct, frozen=True):
    """A connection, as it is opened; ports 0 where there are none or they are unknown. An end may be a range: then a rule
    must allow all of it."""

    protocol: str
    source: str
    target: str
    source_port: int
    port: int


class Opened(NamedTuple):
    """The hosts' services that guests may open: each segment's own, by its id, and for all of them the name servers that gateways
    ask."""

    segments: Mapping[str, tuple[Allowed, ...]]
    resolvers: tuple[str, ...]


class RefusedDestinations(NamedTuple):
    """Destinations refused to guests' outbound traffic: ``cidrs``, and the own addresses of ``hosts`` (ranges too) but for what
    is ``published`` there, as (protocol, port)."""

    cidrs: tuple[str, ...]
    hosts: tuple[str, ...]
    published: frozenset[tuple[str, int]]


def make_filter(
    port_id: str,
    nic: AllocatedNic,
    groups: Sequence[AllocatedGroup],
    endpoints: Sequence[Endpoint],
    services: Iterable[str],
    *,
    closed: bool = False,
) -> Filter:
    """The filter of a NIC whose workload has these security groups, with all their rules; ``endpoints`` and ``services`` (by
    address) are its network's. A rule about a group's members applies to their addresses there."""
    return Filter(
        port_id=port_id,
        segment_id=short_id(nic.network_uid),
        address=nic.address,
        gateway=nic.gateway,
        ingress=allow([rule for group in groups for rule in group.ingress], endpoints),
        egress=allow([rule for group in groups for rule in group.egress], endpoints),
        closed=closed,
        services=tuple(services),
    )


def allow(rules: Iterable[AllocatedRule], endpoints: Sequence[Endpoint]) -> tuple[Allowed, ...]:
    """Security groups' rules, in a network with these endpoints."""
    allowed = []
    for rule in rules:
        ranges: tuple[str, ...] | None = None if rule.cidr is None else (rule.cidr,)
        if rule.group_uid is not None:
            ranges = tuple(e.address for e in endpoints if rule.group_uid in e.groups)
        allowed.append(Allowed(rule.protocol, rule.first_port, rule.last_port, ranges))
    return tuple(dict.fromkeys(allowed))


def open_hosts(
    written: Iterable[str], server: Sequence[str], ports: Mapping[str, Sequence[int]]
) -> tuple[Allowed, ...]:
    """A network's ``open`` for its segment; ``server`` are the ranges of the server's machine, and ``ports`` those of its services
    there. An entry that only a newer server understands opens nothing."""
    found: list[Allowed] = []
    for entry in written:
        try:
            rule = read_open(entry)
        except InvalidInput:
            continue
        if rule is None:
            found += [Allowed("tcp", port, port, tuple(server)) for port in ports.get(entry, ())]
        else:
            ranges = None if rule.cidr is None else (rule.cidr,)
            found.append(Allowed(rule.protocol, rule.first_port, rule.last_port, ranges))
    return tuple(dict.fromkeys(found))


def may_open(flow: NewFlow, filters: Mapping[str, Filter]) -> bool:
    """Whether the ``filters`` of its segment, by address, would let it open now."""
    source, target = filters.get(flow.source), filters.get(flow.target)
    return (source is None or may_leave(flow, source)) and (target is None or may_enter(flow, target))


def may_leave(flow: NewFlow, source: Filter) -> bool:
    """Whether the filter of the port that opens the flow lets it out."""
    if _is_dhcp(flow) or (flow.target == source.gateway and flow.port == DNS):
        return True
    if flow.target in source.services and not source.closed:
        return True
    return is_allowed(source.egress, flow, flow.target)


def may_enter(flow: NewFlow, target: Filter) -> bool:
    """Whether the filter of the port that gets the flow lets it in."""
    if _is_dhcp(flow) or (flow.source == target.gateway and not target.closed):
        return True
    return is_allowed(target.ingress, flow, flow.source)


def is_allowed(rules: Iterable[Allowed], flow: NewFlow, far_end: str) -> bool:
    """Whether one of the rules allows a flow to or from ``far_end``, an address or a range."""
    return any(_matches(rule, flow, far_end) for rule in rules)


def find_group(
    groups: Iterable[AllocatedGroup], flow: NewFlow, far_end: str, endpoints: Sequence[Endpoint], *, out: bool
) -> str:
    """The first of a workload's groups that allows a flow to or from ``far_end``; "" if none does: it needs none, or what allowed
    it has been changed. ``endpoints``: those of its network that a rule's group may have as members."""
    for group in groups:
        if is_allowed(allow(group.egress if out else group.ingress, endpoints), flow, far_end):
            return group.name
    return ""


def is_refused_network(flow: NewFlow, refused: RefusedDestinations) -> bool:
    """Whether a flow that leaves its network is to another network of the fabric."""
    return any(IPv4Address(flow.target) in IPv4Network(cidr) for cidr in refused.cidrs)


def is_closed_host(flow: NewFlow, refused: RefusedDestinations, opened: Opened, segment_id: str) -> bool:
    """Whether a flow that leaves its segment is to a service of a host that is closed to guests there."""
    address = IPv4Address(flow.target)
    if not any(address in IPv4Network(host) for host in refused.hosts) or _is_open_to_all(flow, refused, opened):
        return False
    return not is_allowed(opened.segments.get(segment_id, ()), flow, flow.target)


def _matches(rule: Allowed, flow: NewFlow, far_end: str) -> bool:
    if rule.protocol not in ("any", flow.protocol):
        return False
    if rule.protocol in ("tcp", "udp") and not rule.first_port <= flow.port <= rule.last_port:
        return False
    return rule.ranges is None or any(IPv4Network(far_end).subnet_of(IPv4Network(r)) for r in rule.ranges)


def _is_dhcp(flow: NewFlow) -> bool:
    return flow.protocol == "udp" and {flow.source_port, flow.port} == {67, 68}


def _is_open_to_all(flow: NewFlow, refused: RefusedDestinations, opened: Opened) -> bool:
    return (
        flow.protocol == "icmp"
        or (flow.protocol, flow.port) in refused.published
        or (flow.target in opened.resolvers and flow.port == DNS)
    )
