"""Writes the nft tables of ports with security groups, and finds the open connections they no longer allow. Pure.

Bridges can't track connections themselves on every kernel, so bridged frames pass the IP hooks (br_netfilter), in a zone of
conntrack for each segment, since segments may have the same addresses. A port is identified there by its bridge and address;
the bridge table makes sure that only frames with its address reach it, and only IP.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

import msgspec

from weft.contracts.driver.network import Allowed, Filter
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.rules import Table, elements

CALL_IPTABLES = "net/bridge/bridge-nf-call-iptables"
_LAST_ZONE = 65535
_FLOW = re.compile(
    r"^(?P<protocol>\w+) .*?\bsrc=(?P<source>[\d.]+) dst=(?P<target>[\d.]+)"
    r"(?: sport=(?P<source_port>\d+) dport=(?P<port>\d+))?"
)


class Flow(msgspec.Struct, frozen=True):
    """A connection that conntrack follows, as it was opened; ports 0 where there are none."""

    protocol: str
    source: str
    target: str
    source_port: int
    port: int


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
    into = _render_rules(f.ingress, "saddr", "accept")
    out_of = _render_rules(f.egress, "daddr", "return")
    return f"""\
chain in_{f.port_id} {{
  ip saddr {f.gateway} accept
{into}  counter drop
}}
chain out_{f.port_id} {{
  ip daddr {f.gateway} meta l4proto {{ tcp, udp }} th dport 53 return
{out_of}  counter drop
}}
"""


def _render_rules(rules: Iterable[Allowed], end: str, verdict: str) -> str:
    return "".join(f"  {line} {verdict}\n".replace("   ", "  ") for rule in rules for line in _render_rule(rule, end))


def _render_rule(rule: Allowed, end: str) -> list[str]:
    """A rule's match; nothing for one that matches nobody."""
    if rule.ranges == ():
        return []
    whom = ""
    if rule.ranges is not None:
        found = ", ".join(str(r) for r in collapse_addresses(IPv4Network(r) for r in rule.ranges))
        whom = f"ip {end} {{ {found} }} "
    if rule.protocol == "any":
        return [whom.rstrip()]
    if rule.protocol == "icmp" or (rule.first_port, rule.last_port) == (0, 65535):
        return [f"{whom}meta l4proto {rule.protocol}"]
    return [f"{whom}{rule.protocol} dport {rule.first_port}-{rule.last_port}"]


def read_flows(listing: str) -> list[Flow]:
    """The flows in what ``conntrack -L`` prints."""
    found = [match for line in listing.splitlines() if (match := _FLOW.match(line))]
    return [
        Flow(m["protocol"], m["source"], m["target"], int(m["source_port"] or 0), int(m["port"] or 0)) for m in found
    ]


def find_revoked(flows: Iterable[Flow], filters: Mapping[str, Filter]) -> list[Flow]:
    """The flows of a segment that its ``filters``, by address, would not let open now."""
    return [flow for flow in flows if not _may_open(flow, filters)]


def _may_open(flow: Flow, filters: Mapping[str, Filter]) -> bool:
    if flow.protocol == "udp" and {flow.source_port, flow.port} == {67, 68}:
        return True
    source, target = filters.get(flow.source), filters.get(flow.target)
    if source is not None and not (flow.target == source.gateway and flow.port == 53):
        if not any(_matches(rule, flow, flow.target) for rule in source.egress):
            return False
    return (
        target is None
        or flow.source == target.gateway
        or any(_matches(rule, flow, flow.source) for rule in target.ingress)
    )


def _matches(rule: Allowed, flow: Flow, far_end: str) -> bool:
    if rule.protocol not in ("any", flow.protocol):
        return False
    if rule.protocol in ("tcp", "udp") and not rule.first_port <= flow.port <= rule.last_port:
        return False
    return rule.ranges is None or any(IPv4Address(far_end) in IPv4Network(r) for r in rule.ranges)
