"""Tables and neighbours of a segment for guests that arrived or left while they ran. Pure.

A frame for a guest that has left is passed on: overlay to overlay, by its MAC alone, so nothing floods and nothing
returns. A connection that was opened through a node's router (a published port, a masked way out) stays with that
router's conntrack: it reaches the guest through the overlay, and what the guest answers goes back there, because its
new router doesn't know the connection. Routers all have one MAC, which never crosses an overlay; between nodes they go
by ``router_mac``.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import msgspec

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge.names import router_mac

# Other nodes' routers, as next hops of a router: beside the uplinks' range, and never seen outside.
OLDER = IPv4Network("169.254.128.0/20")


def find_passed_on(host: Host, segment: Segment) -> list[str]:
    """The MACs of guests that have left, are known to be elsewhere, and are not on their way back: two nodes that pass frames
    to each other, or to nowhere known, would never end."""
    there = {e.mac for e in segment.endpoints if e.node_address != host.underlay_address}
    newest = {migrated.mac: migrated.way for migrated in segment.migrated}
    return sorted(mac for mac, way in newest.items() if way == "out" and mac in there)


def find_older(host: Host, segment: Segment) -> dict[str, list[str]]:
    """The nodes through whose routers guests' connections may lead, and the addresses of those guests: where each came
    from, but for the one that it has gone back to."""
    newest = {migrated.mac: migrated.way for migrated in segment.migrated}
    now = {e.mac: e.node_address for e in segment.endpoints}
    found: dict[str, set[str]] = {}
    for migrated in segment.migrated:
        back_there = newest[migrated.mac] == "out" and now.get(migrated.mac) == migrated.node_address
        if migrated.way == "in" and migrated.node_address not in ("", host.underlay_address) and not back_there:
            found.setdefault(migrated.node_address, set()).add(migrated.address)
    return {node: sorted(found[node]) for node in sorted(found)}


def older_routers(host: Host, segment: Segment) -> dict[str, str]:
    """Those routers, by MAC: their nodes' addresses."""
    return {router_mac(node): node for node in find_older(host, segment)}


def older_hops(host: Host, segment: Segment) -> dict[str, str]:
    """Addresses of this link alone for each of those routers: node address → address. A node keeps its own when others join or
    leave; otherwise packets on their way to it would go to another for a moment."""
    hops: dict[str, str] = {}
    for node in find_older(host, segment):
        at = int(IPv4Address(node)) % (OLDER.num_addresses - 2)
        while (hop := str(OLDER[at + 1])) in hops.values():
            at = (at + 1) % (OLDER.num_addresses - 2)
        hops[node] = hop
    return hops


def find_neighbours(host: Host, segment: Segment) -> dict[str, str]:
    """The neighbours that a segment's router has to know without asking, address to MAC: it can't ask through the overlay."""
    routers = {hop: router_mac(node) for node, hop in older_hops(host, segment).items()}
    targets = {target.address for service in segment.services if not service.proxied for target in service.targets}
    macs = {e.address: e.mac for e in segment.endpoints if e.address in targets}
    return macs | {m.address: m.mac for m in segment.migrated} | routers


def readdress(segment: Segment, mac: str, node_address: str) -> Segment:
    """The segment with one endpoint at another node."""
    endpoints = [
        msgspec.structs.replace(found, node_address=node_address) if found.mac == mac else found
        for found in segment.endpoints
    ]
    return msgspec.structs.replace(segment, endpoints=endpoints)
