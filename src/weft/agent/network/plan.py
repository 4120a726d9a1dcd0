"""Folds this node's allocations, their networks' neighbours and the published ports into the network driver's plan. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

import msgspec

from weft.agent.state.allocation import LocalAllocation, port_id
from weft.agent.state.checkpoint import Hop
from weft.agent.state.service import ServedAddress
from weft.agent.state.workload_kinds import is_workload
from weft.contracts.driver.network import (
    Alias,
    Endpoint,
    Filter,
    Forward,
    Inside,
    Migrated,
    NodeShare,
    Port,
    Segment,
)
from weft.contracts.network.rules import make_filter, open_hosts
from weft.kinds.allocation import AllocatedNic
from weft.kinds.endpoint import EndpointSpec, EndpointStatus
from weft.kinds.fields.allocated_migration import is_between_clusters
from weft.kinds.published_port import PublishedPortSpec, PublishedPortStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import Ref, short_id, split_named
from weft.protocol.heartbeat import HeldPorts, make_held
from weft.protocol.report import NO_PLACE, NetworkRules, ServerPlace


def fold_segments(
    here: Iterable[LocalAllocation],
    neighbours: Mapping[str, Iterable[Endpoint]],
    own_address: str,
    hops: Sequence[Hop] = (),
    rules: Mapping[str, NetworkRules] = {},
    server: ServerPlace = NO_PLACE,
    services: Mapping[str, Mapping[str, ServedAddress]] = {},
) -> dict[str, Segment]:
    """The segments that the allocations ``here``, and those that left, need; by network uid.

    Their NICs are at ``own_address``, even before the server's list has them; the others are where ``neighbours`` has them (by
    network uid). A migrating guest's NIC is where it was switched to, else where the server's list has it. A guest in several
    networks asks its first one's name server, which knows the other networks' names too, as NAME.NETWORK; not if its first one is
    another project's, whose guests would see them. ``rules``, by network uid, are what people have changed since a NIC was made;
    what they open of the server is at its place. ``services``: by network uid and address."""
    nics: dict[str, AllocatedNic] = {}
    own: dict[str, dict[str, Endpoint]] = {}
    for local in here:
        for nic in local.spec.nics:
            nics.setdefault(nic.network_uid, nic)
            known = _find(neighbours, nic)
            if _has_here(local, known=known):
                groups = tuple(sorted(group.uid for group in local.spec.groups))
                name = name_inside(local.spec.workload, nic.network, local.spec.hostname)
                if known is not None and known.uid == nic.uid:  # its network may call it otherwise by now
                    name = known.name
                endpoint = Endpoint(nic.mac, nic.address, name, own_address, groups, nic.uid)
                own.setdefault(nic.network_uid, {})[nic.address] = endpoint
    migrated: dict[str, list[Migrated]] = {}
    newest = {hop.nic.uid: hop for hop in hops}
    for hop in hops:
        nic = hop.nic
        known = _find(neighbours, nic)
        if is_anothers(known, nic):
            continue
        nics.setdefault(nic.network_uid, nic)
        migrated.setdefault(nic.network_uid, []).append(Migrated(hop.way, nic.mac, nic.address, hop.peer))
        before, after = (own_address, hop.peer) if hop.way == "out" else (hop.peer, own_address)
        listed_late = known is not None and known.node_address in (before, own_address)
        if hop is newest[nic.uid] and hop.switched and known is not None and listed_late:
            there = msgspec.structs.replace(known, node_address=after)
            own.setdefault(nic.network_uid, {})[nic.address] = there
    endpoints = {uid: _join(neighbours.get(uid, ()), own.get(uid, {})) for uid in nics}
    aliases: dict[str, set[Alias]] = {}
    for local in here:
        main = local.spec.nics[:1]
        for nic in local.spec.nics[1:] if main and "/" not in main[0].network else ():
            named = {
                Alias(_name_elsewhere(e.name, nic.network), e.address) for e in endpoints[nic.network_uid] if e.name
            }
            aliases.setdefault(main[0].network_uid, set()).update(named)
    return {
        uid: Segment(
            id=short_id(uid),
            name=split_named(None, nic.network)[1],
            vni=nic.vni,
            cidr=nic.cidr,
            gateway=nic.gateway,
            mtu=nic.mtu,
            domain=nic.domain,
            nat=rules[uid].nat if uid in rules else nic.nat,
            endpoints=endpoints[uid],
            aliases=sorted(aliases.get(uid, ()), key=lambda alias: (alias.name, alias.address)),
            migrated=sorted(migrated.get(uid, ()), key=lambda nic: nic.address),
            open=open_hosts(rules[uid].open, server.ranges, server.ports) if uid in rules else (),
            services=tuple(services[uid][address].service for address in sorted(services.get(uid, ()))),
        )
        for uid, nic in nics.items()
    }


def _has_here(local: LocalAllocation, *, known: Endpoint | None) -> bool:
    """Whether a NIC is at this node, whose endpoint the server lists as ``known``. One that comes from another cluster has an
    address that nobody has here."""
    if local.spec.role == "target":
        return is_between_clusters(local.spec.migration)
    return local.spec.role == "active" or (local.spec.role == "source" and known is None)


def _find(neighbours: Mapping[str, Iterable[Endpoint]], nic: AllocatedNic) -> Endpoint | None:
    """The server's endpoint of a NIC."""
    return next((e for e in neighbours.get(nic.network_uid, ()) if e.address == nic.address), None)


def is_anothers(known: Endpoint | None, nic: AllocatedNic) -> bool:
    """Whether a NIC's address, and its MAC, belong to another NIC by now; ``known`` is the address's endpoint."""
    return known is not None and known.uid not in ("", nic.uid)


def _join(listed: Iterable[Endpoint], own: dict[str, Endpoint]) -> list[Endpoint]:
    by_address = {endpoint.address: endpoint for endpoint in listed} | own
    return [by_address[address] for address in sorted(by_address)]


def ports_of(
    local: LocalAllocation, nics: Sequence[AllocatedNic] | None = None, *, in_namespace: bool | None = None
) -> list[Port]:
    """The allocation's NICs (or ``nics`` that it had) as ports on this node, in the guest's order. ``in_namespace``: whether they
    lie in a namespace of the node; None: if it runs on the node's own kernel."""
    inside = local.shares_kernel if in_namespace is None else in_namespace
    return [
        Port(
            id=port_id(local.uid, nic.uid),
            segment_id=short_id(nic.network_uid),
            mac=nic.mac,
            address=nic.address,
            hostname=name_inside(local.spec.workload, nic.network, local.spec.hostname) or local.spec.workload.name,
            main=index == 0,
            inside=_place_inside(local, index, inside),
        )
        for index, nic in enumerate(local.spec.nics if nics is None else nics)
    ]


def name_inside(workload: Ref, network: str, hostname: str = "") -> str:
    """A workload's name in a network, which it names so: NAME, or NAME.PROJECT in one of another project; "" for a node, whose
    egress endpoints have none."""
    if not is_workload(workload.kind):
        return ""
    name = hostname or workload.name
    return f"{name}.{workload.project}" if "/" in network else name


def _name_elsewhere(name: str, network: str) -> str:
    """The name of an endpoint of ``network`` (as a guest there names it), for the guest's first network: NAME.NETWORK, or
    NAME.PROJECT.NETWORK where guest or network are another project's."""
    owner, network_name = split_named(None, network)
    return f"{name}.{network_name}" if "." in name or owner is None else f"{name}.{owner}.{network_name}"


def _place_inside(local: LocalAllocation, index: int, in_namespace: bool) -> Inside | None:
    if not is_workload(local.spec.workload.kind):
        return Inside(local.id, shared=True)
    return Inside(local.id, f"eth{index}", own_users=local.shares_kernel) if in_namespace else None


def fold_filters(
    here: Iterable[LocalAllocation], segments: Mapping[str, Segment], closed: Collection[str] = ()
) -> list[Filter]:
    """The filters of NICs whose workload has security groups, with all groups' rules. A rule about a group's members applies to
    their addresses in the NIC's own network. The ports of allocations whose uid is in ``closed`` let nothing through."""
    filters = {}
    for local in here:
        groups = [] if local.uid in closed else local.spec.groups
        for nic in local.spec.nics if groups or local.uid in closed else ():
            segment = segments[nic.network_uid]
            port = port_id(local.uid, nic.uid)
            addresses = [service.address for service in segment.services]
            is_closed = local.uid in closed
            filters[port] = make_filter(port, nic, groups, segment.endpoints, addresses, closed=is_closed)
    return [filters[port] for port in sorted(filters)]


def read_endpoint(envelope: Envelope) -> Endpoint | None:
    """A network's endpoint for the driver; None while it isn't plugged in."""
    spec, status = decode_part(envelope.spec, EndpointSpec), decode_part(envelope.status, EndpointStatus)
    if not status.node_address:
        return None
    groups = tuple(status.groups)
    name = name_inside(spec.workload, spec.network, spec.hostname)
    return Endpoint(spec.mac, spec.address, name, status.node_address, groups, envelope.uid)


def read_forward(envelope: Envelope) -> Forward | None:
    """A published port for the driver; None while it leads nowhere."""
    spec, status = decode_part(envelope.spec, PublishedPortSpec), decode_part(envelope.status, PublishedPortStatus)
    if not is_workload(spec.workload.kind) and status.network_uid and status.address:
        return Forward(
            port=spec.port,
            protocol=spec.protocol,
            segment_id=short_id(status.network_uid),
            target_address=status.address,
            target_port=spec.target_port,
            node_address="",
            nodes=tuple(NodeShare(node.address, node.weight) for node in status.nodes),
            is_service=True,
        )
    if not (status.node_address and status.network_uid and status.address):
        return None
    return Forward(
        port=spec.port,
        protocol=spec.protocol,
        segment_id=short_id(status.network_uid),
        target_address=status.address,
        target_port=spec.target_port,
        node_address=status.node_address,
    )


def keep_forwards(
    listed: Iterable[Forward], before: Iterable[Forward], orphans: Iterable[LocalAllocation]
) -> list[Forward]:
    """``listed``, and the ports of ``before`` that lead to an orphan here: the server may merely have forgotten them."""
    by_port = {(forward.port, forward.protocol): forward for forward in listed}
    nics = {(short_id(nic.network_uid), nic.address) for orphan in orphans for nic in orphan.spec.nics}
    for forward in before:
        if (forward.segment_id, forward.target_address) in nics:
            by_port.setdefault((forward.port, forward.protocol), forward)
    return [by_port[key] for key in sorted(by_port)]


def fold_held(
    listening: Set[tuple[str, int]], before: Set[tuple[str, int]], published: Set[tuple[str, int]]
) -> HeldPorts:
    """The reported ports among those (protocol, port) that the node's programs are ``listening`` on now. ``before`` is from the
    last check: a UDP socket that only asks is gone by the next. ``published`` ones at either check are not programs'."""
    lasting = {port for port in listening if port[0] == "tcp" or port in before}
    return make_held(lasting - published)
