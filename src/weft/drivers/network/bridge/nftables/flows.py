"""Decides which open connections the rules no longer allow. Pure."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from weft.contracts.network.rules import NewFlow, Opened, RefusedDestinations, is_closed_host
from weft.drivers.network.bridge.netlink.ctnetlink import Tracked

_FLOW = re.compile(
    r"^(?P<protocol>\w+) .*?\bsrc=(?P<source>[\d.]+) dst=(?P<target>[\d.]+)"
    r"(?: sport=(?P<source_port>\d+) dport=(?P<port>\d+))?"
)
_NAMES = {1: "icmp", 6: "tcp", 17: "udp"}


def name_flow(one: Tracked) -> NewFlow:
    """A connection that was read from the kernel."""
    source, target = socket.inet_ntoa(one.source), socket.inet_ntoa(one.destination)
    return NewFlow(_NAMES.get(one.protocol, str(one.protocol)), source, target, one.source_port, one.destination_port)


def find_closed(
    listing: str, refused: RefusedDestinations, opened: Opened, routers: Mapping[str, str]
) -> list[NewFlow]:
    """Find, in what ``conntrack -L`` prints, guests' flows to services of hosts that are closed to their segment, each service
    once, without source ports; ``routers`` are the segments by their routers' addresses. Flows through published ports are led
    elsewhere and stay."""
    found: dict[NewFlow, None] = {}
    for line in listing.splitlines():
        match = _FLOW.match(line)
        if match is None or match["source"] not in routers or match["target"] != _answering(line):
            continue
        flow = NewFlow(match["protocol"], match["source"], match["target"], 0, int(match["port"] or 0))
        if is_closed_host(flow, refused, opened, routers[flow.source]):
            found[flow] = None
    return list(found)


def _answering(line: str) -> str:
    """The address that answers a flow."""
    _, _, answer = line.rpartition("src=")
    return answer.partition(" ")[0]
