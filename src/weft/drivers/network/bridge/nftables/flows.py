"""Decides which open connections the rules no longer allow. Pure."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

import msgspec

from weft.contracts.driver.network import Allowed, Filter
from weft.drivers.network.bridge.netlink.ctnetlink import Tracked
from weft.drivers.network.bridge.nftables.rules import Opened, Refused

_FLOW = re.compile(
    r"^(?P<protocol>\w+) .*?\bsrc=(?P<source>[\d.]+) dst=(?P<target>[\d.]+)"
    r"(?: sport=(?P<source_port>\d+) dport=(?P<port>\d+))?"
)
_NAMES = {1: "icmp", 6: "tcp", 17: "udp"}


class Flow(msgspec.Struct, frozen=True):
    """A tracked connection, as it was opened; ports 0 where there are none."""

    protocol: str
    source: str
    target: str
    source_port: int
    port: int


def name_flow(one: Tracked) -> Flow:
    """A connection that was read from the kernel."""
    source, target = socket.inet_ntoa(one.source), socket.inet_ntoa(one.destination)
    return Flow(_NAMES.get(one.protocol, str(one.protocol)), source, target, one.source_port, one.destination_port)


def may_open(flow: Flow, filters: Mapping[str, Filter]) -> bool:
    """Whether the ``filters`` of its segment, by address, would let it open now."""
    if flow.protocol == "udp" and {flow.source_port, flow.port} == {67, 68}:
        return True
    source, target = filters.get(flow.source), filters.get(flow.target)
    if source is not None and flow.target in source.services and not source.closed:
        return True
    if source is not None and not (flow.target == source.gateway and flow.port == 53):
        if not any(_matches(rule, flow, flow.target) for rule in source.egress):
            return False
    return (
        target is None
        or flow.source == target.gateway
        or any(_matches(rule, flow, flow.source) for rule in target.ingress)
    )


def _matches(rule: Allowed, flow: Flow, far_end: str) -> bool:
    if rule.protocol not in ("any", flow.protocol):
        return False
    if rule.protocol in ("tcp", "udp") and not rule.first_port <= flow.port <= rule.last_port:
        return False
    return rule.ranges is None or any(IPv4Address(far_end) in IPv4Network(r) for r in rule.ranges)


def find_closed(listing: str, refused: Refused, opened: Opened, routers: Mapping[str, str]) -> list[Flow]:
    """In what ``conntrack -L`` prints, guests' flows to services of hosts that are closed to their segment, each service once,
    without source ports; ``routers`` are the segments by their routers' addresses. Flows through published ports are led elsewhere
    and stay."""
    hosts = [IPv4Network(cidr) for cidr in refused.hosts]
    found: dict[Flow, None] = {}
    for line in listing.splitlines():
        match = _FLOW.match(line)
        if match is None or match["source"] not in routers or match["target"] != _answering(line):
            continue
        flow = Flow(match["protocol"], match["source"], match["target"], 0, int(match["port"] or 0))
        address = IPv4Address(flow.target)
        if not any(address in host for host in hosts) or _is_open_to_all(flow, refused, opened):
            continue
        if not any(_matches(rule, flow, flow.target) for rule in opened.segments.get(routers[flow.source], ())):
            found[flow] = None
    return list(found)


def _answering(line: str) -> str:
    """The address that answers a flow."""
    _, _, answer = line.rpartition("src=")
    return answer.partition(" ")[0]


def _is_open_to_all(flow: Flow, refused: Refused, opened: Opened) -> bool:
    return (
        flow.protocol == "icmp"
        or (flow.protocol, flow.port) in refused.published
        or (flow.target in opened.resolvers and flow.port == 53)
    )
