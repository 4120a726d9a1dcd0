"""The flows of a node's guests, as its kernel counts them: open and ended ones by connection tracking, refused ones in the sets
of the filters' table.

Each segment's packets are followed in a zone of their own, before any router translates them, so that a flow has the guests' own
addresses and is in the table once, whether it leads to a neighbour, to another node or outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from socket import inet_aton, inet_ntoa
from typing import Any

import msgspec

from weft.contracts.driver.network import SeenFlow
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.netlink.ctnetlink import Forgotten, Tracked, Wanted, read_tracked
from weft.drivers.network.bridge.nftables.firewall import Firewall
from weft.drivers.network.bridge.nftables.security_groups import CALL_IPTABLES, REVOKED, refused_set
from weft.objects.errors import Unavailable

ETHERNET_BYTES = 14  # before each IP packet; a NIC counts them, connection tracking doesn't
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


class SeenFlows:
    """Flows of the segments that ``guards`` follows."""

    def __init__(self, names: Names, guards: Firewall) -> None:
        self._names, self._guards = names, guards
        self._forgotten = Forgotten()

    async def read(self, at: Collection[tuple[str, str]] | None = None) -> list[SeenFlow]:
        """See contracts.driver.network."""
        segments = self._segments()
        self._forgotten.listen()
        wanted = _want(segments, at)
        found = await asyncio.to_thread(read_tracked, wanted)
        return [_describe(one, segments) for one in found if not one.mark & REVOKED]  # what those try is in the refused

    async def read_ended(self) -> tuple[list[SeenFlow], bool]:
        """See contracts.driver.network."""
        segments = self._segments()
        self._forgotten.listen()
        found, lost = await asyncio.to_thread(self._forgotten.drain, _want(segments, None))
        return [_describe(one, segments) for one in found], lost

    async def read_refused(self, port_ids: Collection[str]) -> list[SeenFlow]:
        """See contracts.driver.network."""
        filters = self._guards.filtered
        known = {id: filters[id] for id in sorted(port_ids) if id in filters}
        if not known:
            return []
        table = self._names.filters_table  # nft lists one set or all of a table's, which are small
        listed = ["nft", "-j", "-n", "list", "sets", "table", "ip", table]
        _, listing, _ = await kernel.attempt("read refused flows", listed)
        sets = {refused_set(id, ports=ports): (id, at) for id, at in known.items() for ports in (True, False)}
        return list(parse_refused(listing, sets))

    def close(self) -> None:
        self._forgotten.close()

    def _segments(self) -> dict[int, str]:
        if not kernel.has_sysctl(CALL_IPTABLES):
            raise Unavailable(
                "this node can't see flows: its kernel lacks br_netfilter",
                reason="noFlows",
                hint="modprobe br_netfilter on the node",
            )
        return {zone: segment_id for segment_id, zone in self._guards.zones.items()}


def _want(segments: dict[int, str], at: Collection[tuple[str, str]] | None) -> Wanted:
    if at is None:
        return lambda zone, source, destination: zone in segments
    here = {
        zone: {inet_aton(address) for segment_id, address in at if segment_id == name}
        for zone, name in segments.items()
    }
    return lambda zone, source, destination: zone in here and (source in here[zone] or destination in here[zone])


def _describe(one: Tracked, segments: dict[int, str]) -> SeenFlow:
    return SeenFlow(
        segments[one.zone],
        one.id,
        _PROTOCOLS.get(one.protocol) or str(one.protocol),
        inet_ntoa(one.source),
        inet_ntoa(one.destination),
        one.source_port,
        one.destination_port,
        one.sent_packets,
        one.sent_bytes + ETHERNET_BYTES * one.sent_packets,
        one.received_packets,
        one.received_bytes + ETHERNET_BYTES * one.received_packets,
        one.started,
    )


def parse_refused(listing: str, sets: dict[str, tuple[str, str]]) -> Iterator[SeenFlow]:
    """Parse what ``nft -j list sets`` printed, of these sets: (port id, segment id) by name. Pure."""
    for name, element in _elements(listing, sets):
        ends, counter = element["val"]["concat"], element.get("counter") or {}
        packets, count = int(counter.get("packets", 0)), int(counter.get("bytes", 0))
        source, destination, protocol, *ports = ends
        source_port, destination_port = ports or (0, 0)
        number = {"icmp": 1, "tcp": 6, "udp": 17}.get(protocol, protocol)
        port_id, segment_id = sets[name]
        yield SeenFlow(
            segment_id,
            0,
            _PROTOCOLS.get(number) or str(number),
            source,
            destination,
            int(source_port),
            int(destination_port),
            packets,
            count + ETHERNET_BYTES * packets,
            0,
            0,
            refused_by=port_id,
        )


def _elements(listing: str, names: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The elements of these sets alone: those of the table's other sets have other shapes."""
    for line in listing.splitlines():
        try:
            items: Iterable[dict[str, Any]] = msgspec.json.decode(line)["nftables"]
        except (msgspec.DecodeError, KeyError):
            continue
        for item in items:
            held = item.get("set", {})
            if held.get("name") in names:
                for found in held.get("elem", ()):
                    yield held["name"], found["elem"]
