"""Writes the nft tables of published ports: on the node, and in each router. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Forward, Held
from weft.contracts.network.rules import UPLINKS
from weft.drivers.network.bridge.names import OUTSIDE, Names
from weft.drivers.network.bridge.nftables.rules import Table, elements
from weft.drivers.network.bridge.plan import Uplink

ROUTER_FORWARDS_TABLE = "ports"


def render_forwards(
    names: Names,
    host: Host,
    forwards: list[Forward],
    uplinks: Mapping[str, Uplink],
    cidrs: Mapping[str, str],
    held: Iterable[Held] = (),
) -> Table:
    """The node's published ports: to the router of the target's segment if it is here, else on to its node. What is ``held``
    comes to the node's own program, at the address where that listens.

    A segment missing from ``uplinks`` isn't here yet; its ports join when it is made. What belongs to no connection is
    dropped: the node itself, which has none at such a port, would reset what a guest has.
    """
    everywhere = {(h.protocol, h.port) for h in held if not h.address}
    forwards = [f for f in forwards if (f.protocol, f.port) not in everywhere]
    led = {(f.protocol, f.port) for f in forwards}
    own = elements(
        f"{h.address} . {h.protocol} . {h.port}" for h in sorted(held) if h.address and (h.protocol, h.port) in led
    )
    here = [f for f in forwards if is_here(f, host) and f.segment_id in uplinks]
    away = [f for f in forwards if not is_here(f, host)]
    to_routers = elements(f"{f.protocol} . {f.port} : {uplinks[f.segment_id].router}" for f in _sorted(here))
    to_nodes = elements(f"{f.protocol} . {f.port} : {f.node_address}" for f in _sorted(away))
    hops = elements(f"{f.node_address} . {f.protocol} . {f.port}" for f in _sorted(away))
    published = elements(str(f.port) for f in _sorted([*here, *away]) if f.protocol == "tcp")
    # A guest coming back to its own network, or a client whose address lies in it, would be answered directly.
    masked = "\n".join(
        f'  oifname "{names.uplink(s)}" ct status dnat ip saddr {{ 127.0.0.0/8, {UPLINKS}, {cidrs[s]} }} masquerade'
        for s in sorted({f.segment_id for f in here})
        if s in cidrs
    )
    bridges = names.any_of("b")  # what is on its way through one isn't the node's to answer, whatever address it bears
    body = f"""\
map to_routers {{
  type inet_proto . inet_service : ipv4_addr
{to_routers}}}
map to_nodes {{
  type inet_proto . inet_service : ipv4_addr
{to_nodes}}}
set hops {{
  type ipv4_addr . inet_proto . inet_service
{hops}}}
set held {{
  type ipv4_addr . inet_proto . inet_service
{own}}}
set published {{
  type inet_service
{published}}}
chain unknown {{
  type filter hook prerouting priority mangle
  iifname {bridges} accept
  ct state invalid tcp dport @published fib daddr type local drop
}}
chain guard {{
  type filter hook prerouting priority raw
  iifname "{host.underlay_link}" ip daddr 127.0.0.0/8 drop
}}
chain arriving {{
  type nat hook prerouting priority dstnat
  iifname {bridges} accept
  fib daddr type local jump publish
}}
chain local {{
  type nat hook output priority -100
  fib daddr type local jump publish
}}
chain publish {{
  ip daddr . meta l4proto . th dport @held return
  dnat to meta l4proto . th dport map @to_routers
  dnat to meta l4proto . th dport map @to_nodes
}}
chain leaving {{
  type nat hook postrouting priority srcnat
  ip daddr . meta l4proto . th dport @hops ct status dnat masquerade
{masked}
}}
"""
    return Table("ip", names.forwards_table, body)


def render_router_forwards(host: Host, segment_id: str, forwards: list[Forward]) -> Table:
    """The last step of a published port: from the router's outer leg to the guest."""
    here = _sorted(f for f in forwards if is_here(f, host) and f.segment_id == segment_id)
    targets = elements(f"{f.protocol} . {f.port} : {f.target_address} . {f.target_port}" for f in here)
    body = f"""\
map targets {{
  type inet_proto . inet_service : ipv4_addr . inet_service
{targets}}}
chain arriving {{
  type nat hook prerouting priority dstnat
  iifname "{OUTSIDE}" fib daddr type local dnat ip to meta l4proto . th dport map @targets
}}
"""
    return Table("ip", ROUTER_FORWARDS_TABLE, body)


def is_here(forward: Forward, host: Host) -> bool:
    return forward.node_address == host.underlay_address


def _sorted(forwards: Iterable[Forward]) -> list[Forward]:
    return sorted(forwards, key=lambda f: (f.protocol, f.port))
