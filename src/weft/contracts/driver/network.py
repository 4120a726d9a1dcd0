"""The network driver contract: one node's share of each tenant network.

``ensure_*`` make the world match a value and may be repeated; only ``unplug`` and ``remove_segment`` remove anything, and only
what they name. Ids are 10-character short ids, by which the driver finds its links and tables again.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import msgspec


class Endpoint(msgspec.Struct, frozen=True):
    """A NIC somewhere in the network."""

    mac: str
    address: str
    name: str  # resolves inside the network as NAME and NAME.NETWORK; "": it has none; NAME.PROJECT: see ``Port.hostname``
    node_address: str  # the underlay address of its node, which may be this one
    groups: tuple[str, ...] = ()  # uids of its security groups
    uid: str = ""  # distinguishes it from a later one with the same address and MAC; "" if unknown


class Alias(msgspec.Struct, frozen=True):
    """``name``, in the network's domain, resolves to ``address``."""

    name: str
    address: str


class Migrated(msgspec.Struct, frozen=True):
    """A NIC whose guest leaves this node or comes to it while it runs. Its endpoint says where it is now."""

    way: Literal["out", "in"]
    mac: str
    address: str
    node_address: str  # where a guest came from: connections opened through that node's router still pass through it


class ServicePort(msgspec.Struct, frozen=True):
    protocol: Literal["tcp", "udp"]
    port: int
    target_port: int


class ServiceTarget(msgspec.Struct, frozen=True):
    """A NIC of the network that a service leads to."""

    address: str
    weight: int  # share of new connections, against the others'; 0: none


class Service(msgspec.Struct, frozen=True):
    """New connections to its address are split among the targets; those that are open stay where they are. Targets see the
    client's own address. Without a target a connection is refused at once. A ``proxied`` one is only given its address: a process
    that listens there (``GatewayListener``) takes the connections."""

    address: str
    names: tuple[str, ...]  # in the network's domain; they go before NICs' names
    ports: tuple[ServicePort, ...]
    targets: tuple[ServiceTarget, ...]  # by address
    sticky: bool = False  # a client's connections go to the same target
    proxied: bool = False


class Segment(msgspec.Struct, frozen=True):
    """One tenant network as a node needs it."""

    id: str
    name: str
    vni: int
    cidr: str  # like 10.20.0.0/24
    gateway: str  # its router's address, the same on every node
    mtu: int
    domain: str
    nat: bool
    endpoints: list[Endpoint]  # all of the network's NICs, ours too
    aliases: list[Alias] = []  # names of other networks' NICs, for guests here that are in those networks too
    migrated: list[Migrated] = []  # NICs that came or left with open connections, a NIC's newest way last
    open: tuple[Allowed, ...] = ()  # what its guests may open to hosts (see ``ensure_refused``) beside what all may
    services: tuple[Service, ...] = ()  # by address


BEHIND = "in"  # prefix of links in a shared namespace that lead to the NICs behind it


class Inside(msgspec.Struct, frozen=True):
    """The place of a container's NIC: in a network namespace of its guest."""

    guest: str  # the allocation's short id
    device: str = "eth0"
    # Others are behind it, over links that begin with BEHIND: what they send leaves with its address; nothing can be opened to them
    # or to it, and they don't reach each other.
    shared: bool = False
    # The namespace belongs to a user namespace of its own, so a guest can have rights over it and none over the node's. The
    # guest's users are mapped there by the driver that starts it.
    own_users: bool = False


class Port(msgspec.Struct, frozen=True):
    """A guest's NIC on this node."""

    id: str  # names its tap, or this node's end of a NIC inside a namespace
    segment_id: str
    mac: str
    address: str
    hostname: (
        str  # a guest of another project: NAME.PROJECT, which resolves as NAME.PROJECT.NETWORK.DOMAIN and nothing else
    )
    main: bool = True  # the guest's default route and name server go by the main port
    inside: Inside | None = None


class NodeShare(msgspec.Struct, frozen=True):
    """A node with targets of a service."""

    address: str
    weight: int


class Forward(msgspec.Struct, frozen=True):
    """A published port: arriving at this node's ``port`` it goes to ``target_address:target_port`` inside segment
    ``segment_id`` if that NIC is here (``node_address`` is ours), else on to ``node_address:port``. Of a service it goes to the
    targets here, or on to one of the ``nodes``: ``target_address`` is then the service's, and ``node_address`` ""."""

    port: int
    protocol: Literal["tcp", "udp"]
    segment_id: str
    target_address: str
    target_port: int
    node_address: str
    nodes: tuple[NodeShare, ...] = ()
    is_service: bool = False


class Held(msgspec.Struct, frozen=True, order=True):
    """A port that a program of the node itself listens on; ``address`` "" is all of the node's."""

    protocol: Literal["tcp", "udp"]
    port: int
    address: str = ""


class Allowed(msgspec.Struct, frozen=True):
    """Rules for what may be opened."""

    protocol: Literal["tcp", "udp", "icmp", "any"]
    first_port: int  # of tcp and udp
    last_port: int
    ranges: tuple[str, ...] | None  # of the other end; None: anywhere, (): nobody


class Filter(msgspec.Struct, frozen=True):
    """A port that carries security groups: only what ``ingress`` allows is opened to it, and only what ``egress`` allows by it.
    Answers pass; so do DHCP, questions to the gateway's name server, and, unless it is ``closed``, what the gateway itself opens
    (``dial``)."""

    port_id: str
    segment_id: str
    address: str
    gateway: str
    ingress: tuple[Allowed, ...]
    egress: tuple[Allowed, ...]
    closed: bool = False
    # Addresses of services, to which the port may open: what is behind them is filtered as what it is.
    services: tuple[str, ...] = ()


class SeenFlow(msgspec.Struct, frozen=True):
    """Packets between two addresses of a segment, as the one that began sends and gets them. Bytes are those of the guest's NIC:
    Ethernet frames without their checksums."""

    segment_id: str
    id: int  # of a connection, distinguishes it from a later one with the same ends; 0: refused
    protocol: str  # tcp, udp, icmp, or a number
    source: str
    destination: str
    source_port: int  # 0 where there is none
    destination_port: int
    sent_packets: int  # by the source
    sent_bytes: int
    received_packets: int
    received_bytes: int
    began: float = 0.0  # unix seconds; 0: unknown
    refused_by: str = ""  # the port whose filter refused it: no packet passed


class NetworkProbe(msgspec.Struct, frozen=True):
    driver: str
    usable: bool
    capabilities: list[str]
    problems: list[str]


class NetworkState(msgspec.Struct, frozen=True):
    """The driver's own segments and ports on this node."""

    segments: list[str]
    ports: list[str]
    shared: list[str] = []  # ports inside a shared namespace


class NetworkDriver(Protocol):
    name: str

    async def probe(self) -> NetworkProbe: ...

    async def ensure_segment(self, segment: Segment) -> None:
        """Bridge, overlay, router, DHCP and DNS, NAT: made or mended, endpoints brought up to date."""

    async def remove_segment(self, segment_id: str) -> None:
        """Remove a segment without ports; absent is fine."""

    async def plug(self, port: Port) -> str:
        """Make the port on its segment; present is fine. Returns what its guest is started with: the tap's interface name, or
        the path of the namespace that holds the NIC, with address and routes."""

    async def unplug(self, port_id: str) -> None:
        """Remove it, with its namespace if that has no other port; absent is fine."""

    async def ensure_forwards(self, forwards: list[Forward]) -> None:
        """Replace all published ports of this node by exactly these, atomically. A port that a program of the node listens on
        stays that program's."""

    async def find_held(self) -> list[Held]:
        """The ports that programs of the node listen on now. From here on these programs keep the published ones among them;
        ports of programs that have ended become published again."""

    async def find_addresses(self) -> list[str]:
        """The node's own IPv4 addresses that others may reach: none of the loopback, none of one link alone."""

    async def ensure_refused(self, cidrs: list[str], hosts: list[str]) -> None:
        """Refuse at once whatever guests send out of their networks to these address ranges, and to no others. At ``hosts``,
        ranges of the own addresses of nodes and of the server's machine, guests still reach published ports, ping, the name
        servers that their gateway asks, and what their segment opens. Connections to other services there end."""

    async def ensure_filters(self, filters: list[Filter]) -> None:
        """Replace the filters of all ports of this node by exactly these, atomically, whether the ports exist yet or not; open
        connections that are no longer allowed end. Raises DriverFailed where the node can't filter."""

    async def state(self) -> NetworkState: ...

    async def heal(self) -> list[str]:
        """Mend what died behind our back (a killed dnsmasq); returns what was mended, one phrase each. Failures go to the log,
        and the rest is mended."""

    async def close(self) -> None: ...


class GatewayListener(Protocol):
    def name_router(self, segment_id: str) -> str:
        """The network namespace, by its name, that has the segment's gateway and the addresses of its services."""

    async def listen(self, segment_id: str, address: str, port: int, protocol: Literal["tcp", "udp"]) -> socket.socket:
        """A bound socket, not blocking, at the segment's gateway ``address``, which only guests here reach, each from its own
        address. Raises OSError."""


@runtime_checkable
class CanListen(Protocol):
    gateways: GatewayListener


@runtime_checkable
class CanDial(Protocol):
    async def dial(self, segment_id: str, address: str, port: int, seconds: float = 5.0) -> socket.socket:
        """A TCP connection to a guest here, from its segment's gateway, made within ``seconds``. Raises OSError."""


class Flows(Protocol):
    """The open connections of ports."""

    async def list(self, port: Port) -> list[str]:
        """The connections that the port's filter follows, one line each, in a form that ``seed`` understands."""

    async def seed(self, port: Port, lines: Iterable[str]) -> None:
        """Let these pass the port's filter here as they did at their source; known ones are fine."""

    async def count_older(self, segment_id: str, address: str) -> int:
        """How many TCP connections of ``address`` still go through this node's router."""


@runtime_checkable
class CanHandOver(Protocol):
    """A guest migrates while it runs. Before: the port is plugged at the target, and ``ensure_segment`` has put it into
    ``migrated`` on both nodes. Then ``switch`` runs on both when the source's machine stands still."""

    flows: Flows

    def switch(self, port: Port, node_address: str) -> None:
        """Switch immediately, without waiting for anything: send what is for the port's NIC to the node at ``node_address``, or to
        the port itself if that is this node. What others still send here for a NIC that migrated ``out`` is passed on. The next
        ``ensure_segment`` has the same endpoint. Raises DriverFailed."""


class ConnectionCounter(Protocol):
    def read_fill(self) -> tuple[int, int]:
        """How many connections the node's table holds, and how many it can. Raises OSError where the kernel follows none."""


@runtime_checkable
class CountsConnections(Protocol):
    connections: ConnectionCounter


class FlowReader(Protocol):
    """A reader of what guests' packets pass on this node, of all segments or only at some (segment id, address)."""

    async def read(self, at: Collection[tuple[str, str]] | None = None) -> list[SeenFlow]:
        """The flows that are open now, or ended a moment ago. Raises Unavailable where the node can't see any, DriverFailed."""

    async def read_ended(self) -> tuple[list[SeenFlow], bool]:
        """Those that ended since the last call, with their last counts, and whether some are missing. Raises as ``read``."""

    async def read_refused(self, port_ids: Collection[str]) -> list[SeenFlow]:
        """Read what these ports' filters refused in the last minutes; counts may begin again at any time. Raises DriverFailed."""


@runtime_checkable
class SeesFlows(Protocol):
    seen: FlowReader


class NicCounts(NamedTuple):
    """Counts of one NIC since its port was made, as its guest sees it; drops are frames for the guest that it didn't take in time,
    and frames of the guest that the node dropped."""

    received_bytes: int
    received_packets: int
    received_drops: int
    sent_bytes: int
    sent_packets: int
    sent_drops: int


class NicCounters(Protocol):
    """Read several times a second, by one thread at a time."""

    def read(self, port_ids: Iterable[str]) -> dict[str, NicCounts]:
        """Read the counts by port id, of those that are here; one reading of the kernel for all. Raises OSError."""

    def close(self) -> None:
        """The next reading opens it again."""


@runtime_checkable
class CountsNics(Protocol):
    nic_counters: NicCounters


class PacketTaps(Protocol):
    def open(self, port_id: str, filter: str, most_bytes: int) -> socket.socket:
        """A raw packet socket, not blocking, with the Ethernet frames that pass the port both ways from here on and that
        ``filter``, in tcpdump's language, describes: with the first ``most_bytes`` of each. It has kernel times and auxiliary
        data (PACKET_AUXDATA), and puts nothing into another mode; closed, nothing is left. Raises InvalidInput for a filter
        that can't be used, NotFound, DriverFailed."""


@runtime_checkable
class CapturesPackets(Protocol):
    taps: PacketTaps
