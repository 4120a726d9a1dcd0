"""Writes the nft tables of services. Pure.

A client sends to a service's address, which its own node's router has. The router chooses a target, puts that one's address in
place of the service's, and sends the packet on: over the bridge, or the overlay. The client is in the target's network, so the
target answers it directly, past the router that has to put the address back. Therefore the bridge of the client's node sends
these answers to its router first: it knows them by a mark of the connection, which it set when the router's packet passed it.
So a target sees its client's own address, and so do security groups; the target's node does nothing.

A published port is split in two steps: a node splits its connections among the nodes with targets, by the sum of their weights,
and each of those among the targets that it has. What comes from another of these nodes was split already.

Of a service that is proxied the router only has the address, for the proxy that listens there; a published port leads to the
node's own proxy, and where there is none to another node's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Forward, Held, Segment, ServiceTarget
from weft.contracts.network.rules import UPLINKS
from weft.drivers.network.bridge.names import GATEWAY_MAC, INSIDE, OUTSIDE, Names, router_mac
from weft.drivers.network.bridge.nftables.parts import PartedTable, RulesetPart, make_parts
from weft.drivers.network.bridge.nftables.rules import STEERED, Table, elements
from weft.drivers.network.bridge.plan import Uplink
from weft.drivers.network.slots import SLOTS, choose_slots

SERVICES_TABLE = "services"
_FROM_ROUTER = 0x77650001  # of a packet that a router has just sent, until its connection has SERVED
SERVED = 0x77650002  # of a connection to a target, where the client's router chose it
_DSTNAT = "  type nat hook prerouting priority dstnat\n"
_SRCNAT = "  type nat hook postrouting priority srcnat\n"
_PLACES = "  type ipv4_addr . inet_proto . inet_service{}\n"
_PORTS = "  type inet_proto . inet_service{}\n"


class Published(NamedTuple):
    """A published port, and what of its service is on this node."""

    forward: Forward
    targets: tuple[ServiceTarget, ...]  # those here that have a weight
    target_port: int  # 0: the service has no such port
    sticky: bool
    proxied: bool = False  # by this node: it takes all connections itself


def find_published(host: Host, forward: Forward, segment: Segment | None) -> Published:
    services = segment.services if segment is not None else ()
    service = next((one for one in services if one.address == forward.target_address), None)
    if service is None or segment is None:
        return Published(forward, (), 0, sticky=False)
    ports = {(port.protocol, port.port): port.target_port for port in service.ports}
    here = {e.address for e in segment.endpoints if e.node_address == host.underlay_address}
    targets = tuple(target for target in service.targets if target.weight and target.address in here)
    target_port = ports.get((forward.protocol, forward.target_port), 0)
    if service.proxied and target_port:
        return Published(forward, (ServiceTarget(service.address, 1),), forward.target_port, sticky=False, proxied=True)
    return Published(forward, targets if target_port else (), target_port, service.sticky)


def render_services(segment: Segment, published: Iterable[Published]) -> PartedTable:
    """The part of a segment's router: what is for a service goes to one of its targets. A target that is its own client is
    answered through the router, as the gateway. What misses its target by a hair's breadth is dropped, for the client to ask
    again; to a service without targets nothing listens, so the router refuses it."""
    maps, chains, places, outside = list[RulesetPart](), list[RulesetPart](), list[str](), ""
    balanced = [service for service in segment.services if not service.proxied]
    for service in balanced:
        place = service.address.replace(".", "_")
        split, key = render_split(f"to_{place}", service.targets, sticky=service.sticky)
        maps += split
        for port in service.ports if split else ():
            name = f"{port.protocol}_{port.port}_{place}"
            chains.append(
                RulesetPart("chain", name, "", f"  meta l4proto {port.protocol} dnat to {key} : {port.target_port}\n")
            )
            places.append(f"{service.address} . {port.protocol} . {port.port}")
    for forward, targets, target_port, sticky, _ in published:
        split, key = render_split(f"published_{forward.protocol}_{forward.port}", targets, sticky=sticky)
        maps += split
        if split:
            match = f'iifname "{OUTSIDE}" fib daddr type local {forward.protocol} dport {forward.port}'
            outside += f"  {match} dnat to {key} : {target_port}\n"
    jumps = [f"{place} : goto {chain.name}" for place, chain in zip(places, chains, strict=True)]
    itself = sorted({target.address for service in balanced for target in service.targets})
    inside = f'  iifname "{INSIDE}" ip daddr . meta l4proto . th dport vmap @services\n'
    masked = f'  oifname "{INSIDE}" ct status dnat ip saddr . ip daddr @itself masquerade\n'
    missed = f'  iifname "{INSIDE}" ct state new ip daddr . meta l4proto . th dport @served drop\n'
    parts = [
        *maps,
        *chains,
        RulesetPart("map", "services", _PLACES.format(" : verdict"), elements(jumps)),
        RulesetPart("set", "served", _PLACES.format(""), elements(places)),
        RulesetPart("set", "itself", "  type ipv4_addr . ipv4_addr\n", elements(f"{one} . {one}" for one in itself)),
        RulesetPart("chain", "arriving", _DSTNAT, inside + outside),
        RulesetPart("chain", "missed", "  type filter hook input priority filter\n", missed),
        RulesetPart("chain", "leaving", _SRCNAT, masked),
    ]
    return make_parts("ip", SERVICES_TABLE, parts)


def render_published(
    names: Names,
    host: Host,
    published: Sequence[Published],
    uplinks: Mapping[str, Uplink],
    cidrs: Mapping[str, str],
    held: Iterable[Held] = (),
) -> PartedTable:
    """The node's published ports of services. What is ``held`` comes to the node's own program, at the address where that
    listens. ``uplinks`` and ``cidrs`` are of the segments here."""
    listening = sorted(held)
    everywhere = {(h.protocol, h.port) for h in listening if not h.address}
    splits, chains, jumps, hops, led, inside = (
        list[RulesetPart](),
        list[RulesetPart](),
        list[str](),
        list[str](),
        set[int](),
        set[str](),
    )
    for one in published:
        forward = one.forward
        if (forward.protocol, forward.port) in everywhere:
            continue
        name = f"{forward.protocol}_{forward.port}"
        nodes = {share.address: share.weight for share in forward.nodes if share.address != host.underlay_address}
        nodes = {} if one.proxied and forward.segment_id in uplinks else nodes
        uplink = uplinks.get(forward.segment_id) if one.targets else None
        own = sum(share.weight for share in forward.nodes) - sum(nodes.values())
        ways = [*nodes.items(), *([(uplink.router, own or 1)] if uplink is not None else [])]
        split, key = render_split(f"to_{name}", tuple(ServiceTarget(*way) for way in ways), sticky=one.sticky)
        if not split:
            continue
        was_split = f"  ip saddr {{ {', '.join(sorted(nodes))} }} dnat to {uplink.router}\n" if uplink and nodes else ""
        splits += split
        chains.append(RulesetPart("chain", name, "", f"{was_split}  dnat to {key}\n"))
        jumps.append(f"{forward.protocol} . {forward.port} : goto {name}")
        hops += [f"{node} . {forward.protocol} . {forward.port}" for node in sorted(nodes)]
        led |= {forward.port} if forward.protocol == "tcp" else set()
        inside |= {forward.segment_id} if uplink is not None else set()
    own_programs = [f"{h.address} . {h.protocol} . {h.port}" for h in listening if h.address]
    bridges = names.any_of("b")
    # as of the published ports of guests: see render_forwards
    masked = "".join(
        f'  oifname "{names.uplink(s)}" ct status dnat ip saddr {{ 127.0.0.0/8, {UPLINKS}, {cidrs[s]} }} masquerade\n'
        for s in sorted(inside)
        if s in cidrs
    )
    publish = "  ip daddr . meta l4proto . th dport @held return\n  meta l4proto . th dport vmap @services\n"
    unknown = f"  iifname {bridges} accept\n  ct state invalid tcp dport @published fib daddr type local drop\n"
    guard = f'  iifname "{host.underlay_link}" ip daddr 127.0.0.0/8 drop\n'
    hop = "  ip daddr . meta l4proto . th dport @hops ct status dnat masquerade\n"
    parts = [
        *splits,
        *chains,
        RulesetPart("map", "services", _PORTS.format(" : verdict"), elements(jumps)),
        RulesetPart("set", "hops", _PLACES.format(""), elements(hops)),
        RulesetPart("set", "held", _PLACES.format(""), elements(own_programs)),
        RulesetPart("set", "published", "  type inet_service\n", elements(map(str, sorted(led)))),
        RulesetPart("chain", "unknown", "  type filter hook prerouting priority mangle\n", unknown),
        RulesetPart("chain", "guard", "  type filter hook prerouting priority raw\n", guard),
        RulesetPart("chain", "publish", "", publish),
        RulesetPart("chain", "arriving", _DSTNAT, f"  iifname {bridges} accept\n  fib daddr type local jump publish\n"),
        RulesetPart(
            "chain", "local", "  type nat hook output priority -100\n", "  fib daddr type local jump publish\n"
        ),
        RulesetPart("chain", "leaving", _SRCNAT, hop + masked),
    ]
    return make_parts("ip", name_published(names), parts)


def render_steering(names: Names, host: Host, segments: Iterable[Segment]) -> list[Table]:
    """The node's two tables that bring answers to its own clients back through their router, and let routers' packets pass
    the overlay to ``segments``' targets."""
    targets = {
        one.id: sorted({t.address for service in one.services if not service.proxied for t in service.targets})
        for one in sorted(segments, key=lambda one: one.id)
        if any(not service.proxied for service in one.services)
    }
    here = elements(f'"{names.bridge(id)}" . {address}' for id in targets for address in targets[id])
    there = elements(f'"{names.overlay(id)}" . {address}' for id in targets for address in targets[id])
    routers = elements(f'"{names.gateway(id)}"' for id in targets)
    followed = f"""\
  iifname != {names.any_of("b")} accept
  meta mark {_FROM_ROUTER} ct direction original iifname . ip daddr @targets ct mark set {SERVED}
  meta mark {_FROM_ROUTER} meta mark set 0
  ct direction reply ct mark {SERVED} meta mark set {STEERED}
"""
    own = router_mac(host.underlay_address)
    between = f"  iifname @routers ether type ip oifname . ip daddr @targets ether saddr set {own}\n"
    pairs = "  type ifname . ipv4_addr\n"
    bridged = [
        RulesetPart("set", "routers", "  type ifname\n", routers),
        RulesetPart("set", "targets", pairs, there),
        RulesetPart(
            "chain",
            "from_routers",
            "  type filter hook prerouting priority -310\n",
            f"  iifname @routers ether type ip meta mark set {_FROM_ROUTER}\n",
        ),
        RulesetPart(
            "chain",
            "to_routers",
            "  type filter hook prerouting priority 10\n",
            f"  meta mark {STEERED} ether daddr set {GATEWAY_MAC}\n",
        ),
        RulesetPart("chain", "between_nodes", "  type filter hook forward priority -20\n", between),
    ]
    tracked = [
        RulesetPart("set", "targets", pairs, here),
        RulesetPart("chain", "followed", "  type filter hook prerouting priority mangle\n", followed),
    ]
    name = name_steering(names)
    return [make_parts("ip", name, tracked), make_parts("bridge", name, bridged)]


def render_split(name: str, targets: Sequence[ServiceTarget], *, sticky: bool) -> tuple[list[RulesetPart], str]:
    """The map that new connections are split by, and what stands for the chosen address in a rule; nothing for no target with a
    weight."""
    live = tuple(target for target in targets if target.weight > 0)
    if not live:
        return [], ""
    key = f"jhash ip saddr mod {SLOTS} seed 1" if sticky else f"numgen random mod {SLOTS}"
    runs = [
        f"{first}-{last} : {address}" if last > first else f"{first} : {address}"
        for first, last, address in choose_slots(live, sticky=sticky)
    ]
    # (nft 1.0.6 dies of listing a map whose key is typeof jhash.)
    part = RulesetPart(
        "map", name, f"  typeof numgen random mod {SLOTS} : ip daddr\n  flags interval\n", elements(runs)
    )
    return [part], f"{key} map @{name}"


def name_steering(names: Names) -> str:
    return f"weft_{names.prefix}_services"


def name_published(names: Names) -> str:
    return f"weft_{names.prefix}_service_ports"
