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
# Connections made from here on have counters, and the time they began.
COUNTED = ("net/netfilter/nf_conntrack_acct", "net/netfilter/nf_conntrack_timestamp")
# In the mark of a connection that may no longer be open. It stays known: if it were forgotten, an answer that is on its way would
# open it the other way round.
REVOKED = 0x80000000
_LAST_ZONE = 65535
# What was refused is counted in the kernel, at no cost to the agent; a guest that fills its set hides only what is its own.
_REFUSED_SIZE, REFUSED_SECONDS = 256, 600
_REFUSED = f"""\
  size {_REFUSED_SIZE}
  flags dynamic,timeout
  timeout {REFUSED_SECONDS}s
  counter
"""


def choose_zones(filters: Iterable[Filter], segments: Iterable[str] = ()) -> dict[str, int]:
    """Each segment's zone of conntrack: its own number on the node, and the same one every time. Filtered segments choose first:
    theirs don't depend on which other ``segments`` are here."""
    zones: dict[str, int] = {}
    filtered = {f.segment_id for f in filters}
    for segment_id in [*sorted(filtered), *sorted(set(segments) - filtered)]:
        zone = zlib.crc32(segment_id.encode()) % _LAST_ZONE + 1
        while zone in zones.values():
            zone = zone % _LAST_ZONE + 1
        zones[segment_id] = zone
    return zones


def render_filters(names: Names, filters: Sequence[Filter], segments: Iterable[str] = ()) -> list[Table]:
    """The two tables that hold all filters; they replace what was there. Connections of all ``segments`` are followed, whether
    they have filters or not: a guest's flows are read from there."""
    known = sorted(filters, key=lambda f: f.port_id)
    keys = {f.port_id: f'"{names.bridge(f.segment_id)}" . {f.address}' for f in known}
    bridges = names.any_of("b")
    ways = "".join(_render_ways(f) for f in known)
    zones = "\n".join(
        f'  iifname "{names.bridge(segment_id)}" ct zone set {zone}'
        for segment_id, zone in sorted(choose_zones(known, segments).items())
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
  ct mark and {REVOKED:#x} != 0 ct direction reply drop
  ct mark and {REVOKED:#x} == 0 ct state established,related accept
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
    services = f"  ip daddr {{ {', '.join(f.services)} }} return\n" if f.services and not f.closed else ""
    ends = "ip saddr . ip daddr . meta l4proto"
    return f"""\
set {refused_set(f.port_id)} {{
  type ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service
{_REFUSED}}}
set {refused_set(f.port_id, ports=False)} {{
  type ipv4_addr . ipv4_addr . inet_proto
{_REFUSED}}}
chain refuse_{f.port_id} {{
  meta l4proto {{ tcp, udp }} update @{refused_set(f.port_id)} {{ {ends} . th sport . th dport }} drop
  update @{refused_set(f.port_id, ports=False)} {{ {ends} }} drop
  counter drop
}}
chain in_{f.port_id} {{
{dial}{into}  goto refuse_{f.port_id}
}}
chain out_{f.port_id} {{
  ip daddr {f.gateway} meta l4proto {{ tcp, udp }} th dport 53 return
{services}{out_of}  goto refuse_{f.port_id}
}}
"""


def refused_set(port_id: str, *, ports: bool = True) -> str:
    """The name of the set of what a port's filter refused, with packets and bytes; of protocols with ``ports``, or of others."""
    return f"refused_{'' if ports else 'other_'}{port_id}"
