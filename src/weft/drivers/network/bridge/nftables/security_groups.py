"""Writes the nft tables of ports with security groups. Pure.

Bridges can't track connections themselves on every kernel, so bridged frames pass the IP hooks (br_netfilter), in a zone of
conntrack for each segment, since segments may have the same addresses. A port is identified there by its bridge and address;
the bridge table makes sure that only frames with its address reach it, and only IP.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from weft.contracts.driver.network import Filter
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.rules import Table, elements, render_rules

CALL_IPTABLES = "net/bridge/bridge-nf-call-iptables"
_LAST_ZONE = 65535


def choose_zones(filters: Iterable[Filter]) -> dict[str, int]:
    """Each filtered segment's zone of conntrack: its own number on the node, and the same one every time."""
    zones: dict[str, int] = {}
    for segment_id in sorted({f.segment_id for f in filters}):
        zone = zlib.crc32(segment_id.encode()) % _LAST_ZONE + 1
        while zone in zones.values():
            zone = zone % _LAST_ZONE + 1
        zones[segment_id] = zone
    return zones


def render_filters(names: Names, filters: Sequence[Filter]) -> list[Table]:
    """The two tables that hold all filters; they replace what was there."""
    known = sorted(filters, key=lambda f: f.port_id)
    keys = {f.port_id: f'"{names.bridge(f.segment_id)}" . {f.address}' for f in known}
    bridges = names.any_of("b")
    ways = "".join(_render_ways(f) for f in known)
    zones = "\n".join(
        f'  iifname "{names.bridge(segment_id)}" ct zone set {zone}'
        for segment_id, zone in sorted(choose_zones(known).items())
    )
    into = elements(f"{keys[f.port_id]} : jump in_{f.port_id}" for f in known)
    out_of = elements(f"{keys[f.port_id]} : jump out_{f.port_id}" for f in known)
    ip_body = f"""\
map ingress {{
  type ifname . ipv4_addr : verdict
{into}}}
map egress {{
  type ifname . ipv4_addr : verdict
{out_of}}}
{ways}chain zoned {{
  type filter hook prerouting priority -301
{zones}
}}
chain between_ports {{
  type filter hook forward priority filter
  iifname != {bridges} accept
  ct state established,related accept
  udp sport . udp dport {{ 67 . 68, 68 . 67 }} accept
  iifname . ip saddr vmap @egress
  iifname . ip daddr vmap @ingress
}}
"""
    guarded = elements(f'"{names.tap(f.port_id)}"' for f in known)
    own = elements(f'"{names.tap(f.port_id)}" . {f.address}' for f in known)
    bridge_body = f"""\
set guarded {{
  type ifname
{guarded}}}
set own {{
  type ifname . ipv4_addr
{own}}}
chain between_ports {{
  type filter hook forward priority -10
  iifname @guarded ether type != {{ ip, arp }} drop
  oifname @guarded ether type != {{ ip, arp }} drop
  oifname @guarded ether type ip udp sport 67 udp dport 68 accept
  oifname @guarded ether type ip oifname . ip daddr != @own drop
}}
"""
    return [Table("ip", names.filters_table, ip_body), Table("bridge", names.filters_table, bridge_body)]


def _render_ways(f: Filter) -> str:
    into = render_rules(f.ingress, "saddr", "accept")
    out_of = render_rules(f.egress, "daddr", "return")
    dial = "" if f.closed else f"  ip saddr {f.gateway} accept\n"
    return f"""\
chain in_{f.port_id} {{
{dial}{into}  counter drop
}}
chain out_{f.port_id} {{
  ip daddr {f.gateway} meta l4proto {{ tcp, udp }} th dport 53 return
{out_of}  counter drop
}}
"""
