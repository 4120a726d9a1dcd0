"""Names, networks and ports that a clone's local cluster uses. Pure: decides from values, reads and writes nothing.

Everything follows from the clone's absolute path, so two clones on one machine never meet; where the path's own choice
is taken by someone else, the next candidate is tried. The result is kept in `.weft/cluster.json` and stays.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress

import msgspec

from weft.objects.errors import Unavailable

NODE_LINK = "under0"
SQLITE, ETCD, MEMBERS = "sqlite", "etcd", "members"
MOST_SERVERS = 5
UNDERLAYS = ipaddress.ip_network("10.64.0.0/10")
FIRST_PORT, PORT_PAIRS = 20000, 5000
FUNCTIONS_BELOW = 10000
CANDIDATES = 64


class Node(msgspec.Struct, frozen=True):
    """A node, or a server that isn't the only one, in namespaces of its own: its name and its address on the underlay."""

    name: str
    address: str


class Taken(msgspec.Struct, frozen=True):
    """Names and ports that this machine already uses: link names, routes as (network, link), listening ports, owner by cluster
    id."""

    links: frozenset[str] = frozenset()
    routes: tuple[tuple[str, str], ...] = ()
    ports: frozenset[int] = frozenset()
    owners: dict[str, str] = {}


class Topology(msgspec.Struct, frozen=True):
    """One clone's local cluster. ``underlay`` is a /24 in CIDR form, its first address is the host's.

    ``store`` is where its server keeps objects: SQLITE, or ETCD for an etcd of the cluster's own; MEMBERS where there are several
    ``servers``, of which the only one of a cluster is none. ``containerd`` names the nodes
    that have one, and give it their containers to hold; ``kata`` those that have one, and leave it to Kata there to give containers
    machines of their own. ``state`` tells this state folder from every other that the clone's path has had; "" in an older one."""

    clone: str
    id: str
    link_prefix: str
    underlay: str
    api_port: int
    gateway_port: int
    nodes: tuple[Node, ...]
    store: str = SQLITE
    containerd: tuple[str, ...] = ()
    kata: tuple[str, ...] = ()
    state: str = ""
    ceph: bool = False  # a Ceph cluster of its own, whose pool all nodes offer as storage pool ``ceph``
    servers: tuple[Node, ...] = ()
    server_options: tuple[str, ...] = ()  # more words for each `weft server`

    @property
    def state_dir(self) -> str:
        return f"{self.clone}/.weft"

    @property
    def run_dir(self) -> str:
        return run_dir_of(self.id)

    @property
    def bridge(self) -> str:
        return bridge_of(self.id)

    @property
    def functions_port(self) -> int:
        """The port where functions are invoked by HTTP."""
        return self.api_port - FUNCTIONS_BELOW

    @property
    def gateway_address(self) -> str:
        return str(ipaddress.ip_network(self.underlay)[1])

    @property
    def nft_table(self) -> str:
        return f"weft_{self.id}"

    @property
    def cgroup(self) -> str:
        return f"weft/{self.id}"

    def veth_of(self, node: Node) -> str:
        """The host's end of the wire to ``node``; the node's end is NODE_LINK."""
        return f"{self.link_prefix}{node.name}"

    def node_state_dir(self, node: Node) -> str:
        return f"{self.state_dir}/nodes/{node.name}"

    @property
    def shared_pool(self) -> str:
        """The folder that all nodes offer as storage pool ``shared``."""
        return f"{self.state_dir}/pools/shared"

    def node_run_dir(self, node: Node) -> str:
        return f"{self.run_dir}/{node.name}"

    def node_cgroup(self, node: Node) -> str:
        return f"{self.cgroup}/{node.name}"

    def node_address(self, node: Node) -> str:
        """The node's address with its prefix length."""
        return f"{node.address}/{ipaddress.ip_network(self.underlay).prefixlen}"


def server_address(topology: Topology) -> str:
    """The address where nodes reach a server, the first one of several."""
    return topology.servers[0].address if topology.servers else topology.gateway_address


def server_url(topology: Topology, server: Node | None = None) -> str:
    """The URL of a server's API, for processes of this machine and for all nodes; without ``server`` that of the first."""
    return f"https://{server_address(topology) if server is None else server.address}:{topology.api_port}"


def server_state_dir(topology: Topology, server: Node) -> str:
    """The state folder of one of several servers."""
    return f"{topology.state_dir}/servers/{server.name}"


def run_dir_of(cluster_id: str) -> str:
    """The folder for sockets, short because a socket's path has ~107 bytes; gone after a reboot."""
    return f"/run/weft-{cluster_id}"


def plan_ids(clone: str) -> list[str]:
    """The cluster ids this clone may use, best first: 6 characters each."""
    return [_cluster_id(clone, attempt) for attempt in range(CANDIDATES)]


def plan_topology(
    clone: str,
    taken: Taken,
    node_count: int = 3,
    store: str = SQLITE,
    containerd: tuple[str, ...] = (),
    kata: tuple[str, ...] = (),
    ceph: bool = False,
    servers: int = 1,
) -> Topology:
    """Choose names, an underlay and ports for the clone at absolute path ``clone``.

    Raises Unavailable when every candidate is taken (which takes dozens of clones or a very full routing table).
    """
    cluster_id = _choose_id(clone, taken)
    prefix = link_prefix_of(cluster_id)
    number = int.from_bytes(hashlib.sha256(f"{clone}\n{cluster_id}".encode()).digest()[:8], "big")
    underlay = _choose_underlay(number, [network for network, link in taken.routes if not link.startswith(prefix)])
    api_port, gateway_port = _choose_ports(number, taken.ports)
    nodes = tuple(Node(f"n{n}", str(underlay[10 + n])) for n in range(1, node_count + 1))
    several = tuple(Node(f"s{n}", str(underlay[1 + n])) for n in range(1, servers + 1)) if servers > 1 else ()
    return Topology(
        clone,
        cluster_id,
        prefix,
        str(underlay),
        api_port,
        gateway_port,
        nodes,
        MEMBERS if several else store,
        containerd,
        kata,
        ceph=ceph,
        servers=several,
    )


def find_conflicts(topology: Topology, taken: Taken) -> list[str]:
    """Conflicts with a kept choice since it was made: sentences, empty if there are none."""
    out = []
    underlay = ipaddress.ip_network(topology.underlay)
    for network, link in taken.routes:
        other = ipaddress.ip_network(network)
        if other.prefixlen >= underlay.prefixlen and other.overlaps(underlay) and link != topology.bridge:
            out.append(f"this cluster's network {underlay} is also routed to {link} ({network})")
    owner = taken.owners.get(topology.id)
    if owner is not None and owner != topology.clone:
        out.append(f"its id {topology.id} is in use by the cluster of {owner}")
    return out


def link_prefix_of(cluster_id: str) -> str:
    """The first 4 characters of every link of this cluster."""
    return f"w{cluster_id[:3]}"


def bridge_of(cluster_id: str) -> str:
    """The bridge between this cluster's nodes, on the host."""
    return f"{link_prefix_of(cluster_id)}br"


def _choose_id(clone: str, taken: Taken) -> str:
    candidates = plan_ids(clone)
    for cluster_id in candidates:
        if taken.owners.get(cluster_id) == clone:
            return cluster_id
    for cluster_id in candidates:
        prefix = link_prefix_of(cluster_id)
        if cluster_id not in taken.owners and not any(link.startswith(prefix) for link in taken.links):
            return cluster_id
    raise Unavailable("no free name for a local cluster", hint="stop another clone's cluster: make down in that clone")


def _cluster_id(clone: str, attempt: int) -> str:
    digest = hashlib.sha256(f"{clone}\n{attempt}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:6]


def _choose_underlay(number: int, routes: list[str]) -> ipaddress.IPv4Network:
    networks = [ipaddress.ip_network(route) for route in routes]
    subnets = 2 ** (24 - UNDERLAYS.prefixlen)
    # A broad route (a company's 10.0.0.0/8) may cover all candidates; a /24 of our own is more specific and wins.
    for narrowest in (1, 17):
        blocked = [n for n in networks if n.prefixlen >= narrowest]
        for step in range(subnets):
            base = int(UNDERLAYS.network_address) + (number + step) % subnets * 256
            candidate = ipaddress.IPv4Network((base, 24))
            if not any(candidate.overlaps(n) for n in blocked if n.version == 4):
                return candidate
    raise Unavailable(f"no free /24 in {UNDERLAYS} for a local cluster", hint="see: ip route")


def _choose_ports(number: int, ports: frozenset[int]) -> tuple[int, int]:
    for step in range(PORT_PAIRS):
        first = FIRST_PORT + (number // 65536 + step) % PORT_PAIRS * 2
        if ports.isdisjoint((first, first + 1, first - FUNCTIONS_BELOW)):
            return first, first + 1
    raise Unavailable(f"no free port from {FIRST_PORT} on for a local cluster", hint="see: ss -lt")
