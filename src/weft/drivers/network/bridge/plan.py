"""Decides which lines of ``ip`` and ``bridge`` batches bring a segment or a port from what is to what should be. Pure.

An intact thing yields no lines, so the same plan makes, mends and leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Inside, Port, Segment
from weft.contracts.network.rules import UPLINKS
from weft.drivers.network.bridge.kernel import FdbEntry, Link, Router
from weft.drivers.network.bridge.migration import OLDER, find_neighbours, older_routers
from weft.drivers.network.bridge.names import (
    GATEWAY_MAC,
    INSIDE,
    OUTSIDE,
    Names,
    port_alias,
    router_mac,
    segment_alias,
)
from weft.objects.errors import InUse, Unavailable

EVERYWHERE = "00:00:00:00:00:00"


@dataclass(frozen=True)
class Uplink:
    """The two addresses between a node and one segment's router."""

    node: str
    router: str


@dataclass
class Steps:
    """Batches in the order they must run: ``links`` in the node, ``fdb``, then ``router`` inside its namespace.
    ``mended`` says in words what they repair or make."""

    links: list[str] = field(default_factory=list)
    fdb: list[str] = field(default_factory=list)
    router: list[str] = field(default_factory=list)
    forward: bool = False
    strict: bool | None = None  # whether the router may take up connections in mid-stream; None: as it is
    mended: list[str] = field(default_factory=list)
    fresh: set[str] = field(default_factory=set)  # links made anew: what was known of them is gone


def plan_uplink(names: Names, segment_id: str, links: Mapping[str, Link]) -> Uplink:
    """The segment's own /31: the one its link holds, else the lowest that nothing on the node uses.

    The kernel is the only record, so two segments can't hold the same one. Raises Unavailable when all are taken.
    """
    mine = names.uplink(segment_id)
    taken = {address for name, link in links.items() if name != mine for address in _pairs(link)}
    if mine in links:
        for held in _pairs(links[mine]):
            if held not in taken:
                return _uplink(held)
    for at in range(int(UPLINKS.network_address), int(UPLINKS.broadcast_address), 2):
        if at not in taken:
            return _uplink(at)
    raise Unavailable(
        f"all {UPLINKS.num_addresses // 2} uplinks of this node are taken",
        hint="remove networks that the node doesn't need",
    )


def held_uplink(names: Names, segment_id: str, links: Mapping[str, Link]) -> Uplink | None:
    """The uplink a segment has now; None before it was made."""
    link = links.get(names.uplink(segment_id))
    pairs = _pairs(link) if link else []
    return _uplink(pairs[0]) if pairs else None


def plan_segment(
    names: Names,
    host: Host,
    segment: Segment,
    ports: list[Port],
    links: Mapping[str, Link],
    fdb: Iterable[FdbEntry],
    router: Router | None,
    uplink: Uplink,
) -> Steps:
    """All that is missing or wrong between the kernel and ``segment`` with ``ports`` on this node.

    Raises InUse when another segment holds the same VNI.
    """
    steps = Steps()
    _plan_bridge(steps, names, segment, links)
    _plan_overlay(steps, names, host, segment, links)
    _plan_router(steps, names, segment, links, router, uplink)
    _plan_older(steps, host, segment, router)
    for port in ports:
        plan_port(steps, names, port, segment.mtu, links)
    known = [entry for entry in fdb if entry.ifname not in steps.fresh]
    lines = plan_fdb(names, host, segment, ports, known)
    if lines and not steps.mended:
        steps.mended.append("forwarding entries")
    steps.fdb += lines
    return steps


def plan_port(steps: Steps, names: Names, port: Port, mtu: int, links: Mapping[str, Link]) -> None:
    """Add what a port's tap, or its end here, lacks: existence, place in its bridge, alias, flags."""
    tap, bridge = names.tap(port.id), names.bridge(port.segment_id)
    link = links.get(tap, Link())
    before = len(steps.links)
    if not link.ifname:
        if port.inside is None:
            steps.links.append(f"tuntap add dev {tap} mode tap")
        else:
            steps.links.append(plan_inside_link(names, port, port.inside, mtu))
        steps.links.append(f"link set dev {tap} addrgenmode none")
    if link.mtu != mtu:
        steps.links.append(f"link set dev {tap} mtu {mtu}")
    if link.ifalias != port_alias(port):
        steps.links.append(f'link set dev {tap} alias "{port_alias(port)}"')
    if link.master != bridge:
        steps.links.append(f"link set dev {tap} master {bridge}")
    if link.master != bridge or link.brport("learning") or link.brport("flood"):
        steps.links.append(f"link set dev {tap} type bridge_slave learning off flood off")
    if not link.up:
        steps.links.append(f"link set dev {tap} up")
    if len(steps.links) > before:
        steps.mended.append(f"port {port.id}")


def plan_inside_link(names: Names, port: Port, inside: Inside, mtu: int) -> str:
    """The line that makes both ends of a container's NIC. Its namespace must be there."""
    far = f"name {inside.device} address {port.mac} mtu {mtu} netns {names.guest(inside.guest)}"
    return f"link add {names.tap(port.id)} type veth peer {far}"


def plan_inside(port: Port, inside: Inside, segment: Segment) -> list[str]:
    """The lines that set a container's NIC up within its namespace; each may be repeated."""
    device, prefix = inside.device, ip_network(segment.cidr).prefixlen
    lines = ["link set dev lo up", f"link set dev {device} addrgenmode none", f"link set dev {device} up"]
    lines.append(f"addr replace {port.address}/{prefix} dev {device}")
    if port.main:
        lines.append(f"route replace default via {segment.gateway} dev {device}")
    return lines


def plan_fdb(names: Names, host: Host, segment: Segment, ports: list[Port], known: Iterable[FdbEntry]) -> list[str]:
    """The forwarding entries to drop and to set: who is behind which node, who behind which tap.

    Entries of other segments' devices are left alone; so are entries for taps that are gone (the kernel's doing).
    """
    overlay, bridge = names.overlay(segment.id), names.bridge(segment.id)
    remote = {e.mac: e.node_address for e in segment.endpoints if e.node_address != host.underlay_address}
    routers = older_routers(host, segment)
    tunnels = {*remote.items(), *routers.items()} | {(EVERYWHERE, node) for node in remote.values()}
    places = dict.fromkeys((*remote, *routers), overlay)
    places |= {p.mac: names.tap(p.id) for p in ports if p.mac not in remote}
    places[GATEWAY_MAC] = names.gateway(segment.id)
    if any(guest.way == "out" for guest in segment.migrated):
        places[router_mac(host.underlay_address)] = names.gateway(segment.id)

    had_tunnels = {(e.mac, e.dst) for e in known if e.ifname == overlay and e.dst}
    had_places = {e.mac: e.ifname for e in known if e.master == bridge and e.state == "static"}
    lines = [f"fdb del {mac} dev {overlay} dst {node} self" for mac, node in sorted(had_tunnels - tunnels)]
    lines += [f"fdb del {mac} dev {link} master" for mac, link in sorted(had_places.items()) if mac not in places]
    lines += [
        f"fdb append {mac} dev {overlay} dst {node} self permanent" for mac, node in sorted(tunnels - had_tunnels)
    ]
    lines += [
        f"fdb replace {mac} dev {link} master static"
        for mac, link in sorted(places.items())
        if had_places.get(mac) != link
    ]
    return lines


def plan_removal(names: Names, segment_id: str, links: Mapping[str, Link], has_router: bool) -> list[str]:
    """The lines that take a segment away."""
    lines = [f"netns del {names.router(segment_id)}"] if has_router else []
    ours = (names.gateway, names.uplink, names.overlay, names.bridge)
    return [f"link del dev {name(segment_id)}" for name in ours if name(segment_id) in links] + lines


def _plan_bridge(steps: Steps, names: Names, segment: Segment, links: Mapping[str, Link]) -> None:
    name, alias = names.bridge(segment.id), segment_alias(segment.id)
    link = links.get(name, Link())
    before = len(steps.links)
    if not link.ifname:
        steps.links.append(f"link add name {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
        steps.links.append(f"link set dev {name} addrgenmode none")
    if link.ifalias != alias:
        steps.links.append(f'link set dev {name} alias "{alias}"')
    if link.mtu != segment.mtu or not link.up:
        steps.links.append(f"link set dev {name} mtu {segment.mtu} up")
    if len(steps.links) > before:
        steps.mended.append("bridge")


def _plan_overlay(steps: Steps, names: Names, host: Host, segment: Segment, links: Mapping[str, Link]) -> None:
    name, bridge = names.overlay(segment.id), names.bridge(segment.id)
    wanted = {"id": segment.vni, "local": host.underlay_address, "port": host.vxlan_port, "learning": False}
    for other, held in links.items():
        if (
            other != name
            and held.kind == "vxlan"
            and all(held.linkinfo.info_data.get(k) == wanted[k] for k in ("id", "port"))
        ):
            raise InUse(
                f"network {segment.name!r}: VNI {segment.vni} is taken on this node by link {other}",
                hint="remove the network that uses it, or give one of them another VNI",
            )
    link = links.get(name, Link())
    before = len(steps.links)
    if link.ifname and any(link.linkinfo.info_data.get(k) != v for k, v in wanted.items()):
        steps.links.append(f"link del dev {name}")
        link = Link()
    if not link.ifname:
        steps.fresh.add(name)
        steps.links.append(
            f"link add name {name} mtu {segment.mtu} type vxlan id {segment.vni} local {host.underlay_address}"
            f" dstport {host.vxlan_port} nolearning"
        )
        steps.links.append(f"link set dev {name} addrgenmode none")
    elif link.mtu != segment.mtu:
        steps.links.append(f"link set dev {name} mtu {segment.mtu}")
    if link.master != bridge:
        steps.links.append(f"link set dev {name} master {bridge}")
    if link.master != bridge or link.brport("learning"):
        steps.links.append(f"link set dev {name} type bridge_slave learning off")
    if not link.up:
        steps.links.append(f"link set dev {name} up")
    if len(steps.links) > before:
        steps.mended.append("overlay")


def _plan_router(
    steps: Steps,
    names: Names,
    segment: Segment,
    links: Mapping[str, Link],
    router: Router | None,
    uplink: Uplink,
) -> None:
    inner, outer, namespace = names.gateway(segment.id), names.uplink(segment.id), names.router(segment.id)
    before = len(steps.links) + len(steps.router)
    if router and any(
        far in router.links and not _paired(links.get(near), router.links[far])
        for near, far in ((inner, INSIDE), (outer, OUTSIDE))
    ):
        steps.links.append(f"netns del {namespace}")  # a leg that leads elsewhere: cheaper to rebuild than to untangle
        router = None
    if router is None:
        steps.links.append(f"netns add {namespace}")
    inside = router.links if router else {}
    new_inner = _plan_leg(steps, inner, INSIDE, namespace, links, inside, segment.mtu)
    new_outer = _plan_leg(steps, outer, OUTSIDE, namespace, links, inside, None)

    here = Link() if new_inner else links[inner]
    if here.master != names.bridge(segment.id):
        steps.links.append(f"link set dev {inner} master {names.bridge(segment.id)}")
    if not here.up:
        steps.links.append(f"link set dev {inner} up")
    here = Link() if new_outer else links[outer]
    steps.links += _plan_address(outer, here, f"{uplink.node}/31")
    if not here.up:
        steps.links.append(f"link set dev {outer} up")

    if not inside.get("lo", Link()).up:
        steps.router.append("link set dev lo up")
    _plan_services(steps, segment, inside.get("lo", Link()))
    there = Link() if new_inner else inside[INSIDE]
    if there.mtu != segment.mtu or there.address != GATEWAY_MAC:
        steps.router.append(f"link set dev {INSIDE} address {GATEWAY_MAC} mtu {segment.mtu}")
    prefix = ip_network(segment.cidr).prefixlen
    steps.router += _plan_address(INSIDE, there, f"{segment.gateway}/{prefix}")
    if not there.up:
        steps.router += [f"link set dev {INSIDE} addrgenmode none", f"link set dev {INSIDE} up"]
    there = Link() if new_outer else inside[OUTSIDE]
    steps.router += _plan_address(OUTSIDE, there, f"{uplink.router}/31")
    if not there.up:
        steps.router += [f"link set dev {OUTSIDE} addrgenmode none", f"link set dev {OUTSIDE} up"]
    routes = [] if router is None or new_outer else router.routes
    if not any(r.dst == "default" and r.gateway == uplink.node for r in routes):
        steps.router.append(f"route replace default via {uplink.node} dev {OUTSIDE}")
    steps.forward = router is None or not router.forwarding
    if len(steps.links) + len(steps.router) > before:
        steps.mended.append("router")


def _plan_services(steps: Steps, segment: Segment, lo: Link) -> None:
    """The addresses of services: on each node its router answers for them, and no other, as for the gateway."""
    held = {address for address in lo.addresses if not address.startswith("127.")}
    wanted = {f"{service.address}/32" for service in segment.services}
    steps.router += [f"addr del {address} dev lo" for address in sorted(held - wanted)]
    steps.router += [f"addr add {address} dev lo" for address in sorted(wanted - held)]


def _plan_older(steps: Steps, host: Host, segment: Segment, router: Router | None) -> None:
    """A router's routes, and the neighbours that it can't ask for: guests that migrated, and services' targets. Where some came or
    left it ignores connections that it has not seen begin, since they belong to another router; elsewhere it may take them up, for
    example after it was made anew."""
    wanted = find_neighbours(host, segment)
    # A link that is made anew, or is given its address again, has forgotten them.
    is_kept = router is not None and not any(f"dev {INSIDE} address " in line for line in steps.router)
    held = router.neighbours if router is not None and is_kept else {}
    lines = [f"neigh del {address} dev {INSIDE}" for address in sorted(set(held) - set(wanted))]
    lines += [
        f"neigh replace {address} lladdr {mac} dev {INSIDE} nud permanent"
        for address, mac in sorted(wanted.items())
        if held.get(address) != mac
    ]
    strict = bool(segment.migrated)
    if older_routers(host, segment) and not (
        router and any(route.dst == str(OLDER) and route.dev == INSIDE for route in router.routes)
    ):
        lines.append(f"route replace {OLDER} dev {INSIDE} scope link")
    steps.router += lines
    if strict != (router.strict if router else False):
        steps.strict = strict
    if lines or steps.strict is not None:
        steps.mended.append("neighbours")


def _plan_leg(
    steps: Steps,
    near: str,
    far: str,
    namespace: str,
    links: Mapping[str, Link],
    inside: Mapping[str, Link],
    mtu: int | None,
) -> bool:
    """Make a veth pair into the router's namespace unless both ends are there; says if it did."""
    if near in links and far in inside:
        if mtu is not None and links[near].mtu != mtu:
            steps.links.append(f"link set dev {near} mtu {mtu}")
        return False
    if near in links:
        steps.links.append(f"link del dev {near}")
    size = f"mtu {mtu} " if mtu is not None else ""
    steps.links.append(f"link add name {near} {size}type veth peer name {far} {size}netns {namespace}")
    steps.links.append(f"link set dev {near} addrgenmode none")
    steps.fresh.add(near)
    return True


def _paired(near: Link | None, far: Link) -> bool:
    return near is not None and near.link_index == far.ifindex


def _plan_address(device: str, link: Link, wanted: str) -> list[str]:
    lines = [f"addr del {held} dev {device}" for held in link.addresses if held != wanted]
    return lines if wanted in link.addresses else [*lines, f"addr add {wanted} dev {device}"]


def _pairs(link: Link) -> list[int]:
    """The first addresses of the uplinks whose addresses a link holds."""
    found = [int(IPv4Address(a.split("/")[0])) for a in link.addresses]
    return [at & ~1 for at in found if IPv4Address(at) in UPLINKS]


def _uplink(first: int) -> Uplink:
    return Uplink(str(IPv4Address(first)), str(IPv4Address(first + 1)))
