"""The network driver contract: one node's share of each tenant network.

``ensure_*`` make the world match a value and may be repeated; only ``unplug`` and ``remove_segment`` take away, and
only what they are told. Ids are 10-character short ids; the driver finds its things again by them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

import msgspec


class Endpoint(msgspec.Struct, frozen=True):
    """A NIC somewhere in the network: reachable at ``node_address`` (underlay); here if that is our own. ``name`` "" is that of
    one which nobody looks for. ``groups`` are
    uids of the security groups it carries. ``uid`` tells it from a later one of the same address and MAC; "" if it isn't
    known."""

    mac: str
    address: str
    name: str  # resolves inside the network
    node_address: str
    groups: tuple[str, ...] = ()
    uid: str = ""


class Alias(msgspec.Struct, frozen=True):
    """``name``, in the network's domain, resolves to ``address``."""

    name: str
    address: str


class Migrated(msgspec.Struct, frozen=True):
    """A NIC whose guest leaves this node (``out``) or comes to it (``in``) while it runs. Connections that were opened by
    way of the router of the node that it left go on through that one: ``node_address`` is where such a guest came
    from. Where it is now is told by its endpoint alone."""

    way: Literal["out", "in"]
    mac: str
    address: str
    node_address: str


class Segment(msgspec.Struct, frozen=True):
    """One tenant network as a node needs it: ``cidr`` like 10.20.0.0/24, ``gateway`` its router's address (the same on
    every node), ``endpoints`` all of the network's NICs, ours too. Each resolves inside as NAME and NAME.NETWORK;
    ``aliases`` are more names, of other networks' NICs, for guests here that are in those too. ``moved`` are those that
    came or went with open connections, a NIC's newest way last."""

    id: str
    name: str
    vni: int
    cidr: str
    gateway: str
    mtu: int
    domain: str
    nat: bool
    endpoints: list[Endpoint]
    aliases: list[Alias] = []
    migrated: list[Migrated] = []


BEHIND = "in"  # how links in a shared namespace begin that lead to what stands behind it


class Inside(msgspec.Struct, frozen=True):
    """Where a container has a NIC: in the network namespace of ``guest`` (an allocation's short id), as ``device``. One that is
    ``shared`` has others behind it, over links that begin with BEHIND: what they send leaves with its address; nothing is opened to
    them or to itself, and they don't reach each other. One with ``own_users`` belongs to a user namespace of its own: a guest can
    have rights over it and none over the node's; whoever starts the guest has its users there."""

    guest: str
    device: str = "eth0"
    shared: bool = False
    own_users: bool = False


class Port(msgspec.Struct, frozen=True):
    """A guest NIC on this node; ``id`` names its tap, or its end here of one that lies ``inside`` a namespace. The guest's way
    out and its name server are the ``main`` one's."""

    id: str
    segment_id: str
    mac: str
    address: str
    hostname: str
    main: bool = True
    inside: Inside | None = None


class Forward(msgspec.Struct, frozen=True):
    """A published port: arriving at this node's ``port`` it goes to ``target_address:target_port`` inside segment
    ``segment_id`` if that NIC is here (``node_address`` is ours), else on to ``node_address:port``."""

    port: int
    protocol: Literal["tcp", "udp"]
    segment_id: str
    target_address: str
    target_port: int
    node_address: str


class Held(msgspec.Struct, frozen=True, order=True):
    """A port that a program of the node itself listens on; ``address`` "" is all of the node's."""

    protocol: Literal["tcp", "udp"]
    port: int
    address: str = ""


class Allowed(msgspec.Struct, frozen=True):
    """What a filter lets be opened: of this protocol, to these ports (tcp, udp), the other end in one of ``ranges``;
    None is anywhere, none at all is nobody."""

    protocol: Literal["tcp", "udp", "icmp", "any"]
    first_port: int
    last_port: int
    ranges: tuple[str, ...] | None


class Filter(msgspec.Struct, frozen=True):
    """A port that carries security groups: nothing is opened to it but what ``ingress`` allows, nothing by it but what
    ``egress`` allows. What answers passes; so do DHCP, questions to the gateway's name server, and what the gateway
    itself opens (``dial``)."""

    port_id: str
    segment_id: str
    address: str
    gateway: str
    ingress: tuple[Allowed, ...]
    egress: tuple[Allowed, ...]


class NetworkProbe(msgspec.Struct, frozen=True):
    driver: str
    usable: bool
    capabilities: list[str]
    problems: list[str]


class NetworkState(msgspec.Struct, frozen=True):
    """What the driver finds of its own on this node."""

    segments: list[str]
    ports: list[str]
    shared: list[str] = []  # those of the ports that lie inside a shared namespace


class NetworkDriver(Protocol):
    name: str

    async def probe(self) -> NetworkProbe: ...

    async def ensure_segment(self, segment: Segment) -> None:
        """Bridge, overlay, router, DHCP and DNS, NAT: made or mended, endpoints brought up to date."""

    async def remove_segment(self, segment_id: str) -> None:
        """Take a segment without ports away; absent is fine."""

    async def plug(self, port: Port) -> str:
        """Make the port on its segment; present is fine. Returns what its guest is started with: the tap's interface name, or
        the path of the namespace that has it, with address and routes, ready for use."""

    async def unplug(self, port_id: str) -> None:
        """Take it away, with its namespace if that has no other port; absent is fine."""

    async def ensure_forwards(self, forwards: list[Forward]) -> None:
        """Replace all published ports of this node by exactly these, atomically. One that a program of the node listens on stays
        that program's here."""

    async def find_held(self) -> list[Held]:
        """What programs of the node listen on now. From here on the published ones of them are these programs', and no longer
        those of programs that have ended."""

    async def ensure_refused(self, cidrs: list[str], nodes: list[str]) -> None:
        """From now on no guest's way out of its network leads to these address ranges, and to no others are they
        closed: what guests ask of them is refused at once. Published ports go on: at ``nodes``, ranges of the nodes' own
        addresses, they are reached, and nothing else but ping and names."""

    async def ensure_filters(self, filters: list[Filter]) -> None:
        """Replace the filters of all ports of this node by exactly these, atomically, whether the ports are here yet or
        not; what is open and no longer allowed ends. Raises DriverFailed where the node can't filter."""

    async def state(self) -> NetworkState: ...

    async def heal(self) -> list[str]:
        """Mend what died behind our back (a killed dnsmasq); returns what was mended, one phrase each. What can't be is told in
        the log, and the rest is mended."""

    async def close(self) -> None: ...


@runtime_checkable
class CanDial(Protocol):
    async def dial(self, segment_id: str, address: str, port: int) -> socket.socket:
        """A TCP connection to a guest here, from its segment's gateway. Raises OSError."""


class Flows(Protocol):
    """The open connections of ports."""

    async def list(self, port: Port) -> list[str]:
        """Those that the port's filter follows, one line each, in words that ``seed`` understands."""

    async def seed(self, port: Port, lines: Iterable[str]) -> None:
        """Let these pass the port's filter here as they did where they come from; known ones are fine."""

    async def count_older(self, segment_id: str, address: str) -> int:
        """How many TCP connections of ``address`` still go through this node's router."""


@runtime_checkable
class CanHandOver(Protocol):
    """A guest moves while it runs. Before: the port is plugged at the target, and ``ensure_segment`` has told both nodes
    of it in ``moved``. Then ``switch`` on both at the moment the source's machine stands still."""

    flows: Flows

    def switch(self, port: Port, node_address: str) -> None:
        """At once, without waiting for anything: what is for the port's NIC goes to the node at ``node_address``, to the
        port itself if that is this one. What others still send here for a NIC that has moved ``out`` is passed on.
        The endpoint's change in the next ``ensure_segment`` says the same. Raises DriverFailed."""
