"""The network between the local nodes, on the host: one bridge, one wire per node, the route to the outside.

`plan_*` are pure and give the lines for `ip -batch`; the rest runs them. Everything carries the cluster's link prefix
or the name of its nft table. The host's `ip_forward` is on while any local cluster is up, and put back by the last one.
"""

from __future__ import annotations

import json
from pathlib import Path

from weft.launch.local.commands import run
from weft.launch.local.topology import NODE_LINK, Node, Taken, Topology, bridge_of
from weft.objects.errors import DriverFailed

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORMER_FORWARDING = "ip_forward.before"
OWNER = "clone"
STATE = "state"  # beside it: which state folder of that clone what runs was started with


def plan_bridge(topology: Topology, links: frozenset[str]) -> list[str]:
    """Make the bridge with its address; repeating it changes nothing."""
    bridge = topology.bridge
    address = ":".join(["02", *(f"{ord(character):02x}" for character in topology.id[:5])])
    make = [] if bridge in links else [f"link add name {bridge} address {address} type bridge"]
    prefixed = f"{topology.gateway_address}/{topology.underlay.rpartition('/')[2]}"
    return [*make, f"addr replace {prefixed} dev {bridge}", f"link set {bridge} up"]


def plan_wire(topology: Topology, node: Node, init_pid: int) -> list[str]:
    """Connect the bridge with the network namespace of process ``init_pid``."""
    veth = topology.veth_of(node)
    return [
        f"link add name {veth} type veth peer name {NODE_LINK} netns {init_pid}",
        f"link set {veth} master {topology.bridge} up",
    ]


def plan_node_links(topology: Topology, node: Node) -> list[str]:
    """The node's own addresses; the default route comes last because init waits for it."""
    return [
        "link set lo up",
        f"addr replace {topology.node_address(node)} dev {NODE_LINK}",
        f"link set {NODE_LINK} up",
        f"route replace default via {topology.gateway_address}",
    ]


def plan_firewall(topology: Topology) -> str:
    """An nft script, all or nothing: forward what the nodes send and get, and masquerade it towards the outside."""
    table, bridge = topology.nft_table, topology.bridge
    return f"""table inet {table}
delete table inet {table}
table inet {table} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" accept
    oifname "{bridge}" accept
  }}
  chain outside {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {topology.underlay} oifname != "{bridge}" masquerade
  }}
}}
"""


def inspect_taken() -> Taken:
    """Inspect what this machine uses now: links, routes, listening ports, other clones' clusters."""
    routes = json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]) or "[]")
    networks = [(r["dst"], r.get("dev", "")) for r in routes if r.get("type", "unicast") == "unicast"]
    return Taken(
        links=inspect_links(),
        routes=tuple((dst if "/" in dst else f"{dst}/32", link) for dst, link in networks if dst != "default"),
        ports=frozenset(_inspect_listening_ports()),
        owners=dict(inspect_owners()),
    )


def inspect_links(netns_pid: int | None = None) -> frozenset[str]:
    """Names of the links here, or in the network namespace of a process."""
    enter = [] if netns_pid is None else ["nsenter", "-t", str(netns_pid), "-n"]
    return frozenset(link["ifname"] for link in json.loads(run([*enter, "ip", "-j", "link"])))


def inspect_owners() -> list[tuple[str, str]]:
    """(cluster id, clone) of every local cluster that is up on this machine."""
    files = Path("/run").glob(f"weft-*/{OWNER}")
    return [(file.parent.name.removeprefix("weft-"), file.read_text()) for file in files]


def perform_host_links(topology: Topology) -> None:
    """Bridge, firewall, forwarding."""
    _run_batch(plan_bridge(topology, inspect_links()))
    run(["nft", "-f", "-"], stdin=plan_firewall(topology))
    former = FORWARDING.read_text().strip()
    if former == "0":
        (Path(topology.run_dir) / FORMER_FORWARDING).write_text(former)
        FORWARDING.write_text("1")


def perform_wire(topology: Topology, node: Node, init_pid: int) -> None:
    """Connect a node unless it is connected."""
    veth = topology.veth_of(node)
    if veth not in inspect_links() or NODE_LINK not in inspect_links(init_pid):
        perform_remove_link(veth)
        _run_batch(plan_wire(topology, node, init_pid))
    # The veth may have outlived its bridge, and an interrupted command its addresses: both are cheap to set again.
    _run_batch([f"link set {veth} master {topology.bridge} up"])
    _run_batch(plan_node_links(topology, node), netns_pid=init_pid)


def perform_remove_link(link: str) -> None:
    """Remove a link if it is there; the kernel may be about to do so itself, when a node's namespace has just ended."""
    try:
        run(["ip", "link", "del", link])
    except DriverFailed:
        if link in inspect_links():
            raise


def perform_restore_forwarding(topology: Topology) -> None:
    """Put `ip_forward` back as it was before this cluster, or leave that to a cluster that still needs it."""
    kept = Path(topology.run_dir) / FORMER_FORWARDING
    if not kept.exists():
        return
    links = inspect_links()
    others = [i for i, _ in inspect_owners() if i != topology.id and bridge_of(i) in links]
    if others:
        (Path(f"/run/weft-{others[0]}") / FORMER_FORWARDING).write_text(kept.read_text())
    else:
        FORWARDING.write_text(kept.read_text())
    kept.unlink()


def _run_batch(lines: list[str], netns_pid: int | None = None) -> None:
    enter = [] if netns_pid is None else ["nsenter", "-t", str(netns_pid), "-n"]
    run([*enter, "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def _inspect_listening_ports() -> list[int]:
    ports = []
    for name in ("tcp", "tcp6"):
        file = Path(f"/proc/net/{name}")
        rows = file.read_text().splitlines()[1:] if file.exists() else []
        ports += [int(row.split()[1].rpartition(":")[2], 16) for row in rows if row.split()[3] == "0A"]
    return ports
