"""Writes the nft tables: what the node, its taps and each router let through. Pure.

Every table carries a digest of its text as its comment, so that one read shows whether it is up to date, and replaces its
predecessor in one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses
from typing import Literal

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import BEHIND, Allowed, Inside, Port, Segment
from weft.contracts.network.rules import UPLINKS, Opened, RefusedDestinations
from weft.drivers.network.bridge.migration import find_older, older_hops, older_routers
from weft.drivers.network.bridge.names import GATEWAY_MAC, INSIDE, OUTSIDE, Names, router_mac

ROUTER_TABLE = "router"
SHARED_TABLE = "shared"
PASSED_ON = "passed_on"
STEERED = 0x77650003  # the mark of a frame that goes to its node's own router first, wherever it came from
# Where a DHCP message says whose it is, from the UDP header on (RFC 2131: chaddr). A first fragment that ends before it matches no
# rule that reads it.
DHCP_CLIENT = "@th,288,48"
DHCP_RATE, DHCP_BURST = 5, 20  # packets of one port: a guest that boots sends two, and again after seconds


@dataclass(frozen=True)
class Table:
    family: str
    name: str
    body: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body.encode()).hexdigest()[:16]

    @property
    def empty(self) -> bool:
        return "elements" not in self.body

    @property
    def text(self) -> str:
        """Replaces the table, whatever it held, in one transaction."""
        head = f"table {self.family} {self.name}"
        return f'{head}\ndelete {head}\n{head} {{\ncomment "{self.digest}"\n{self.body}}}\n'


def render_node(names: Names, host: Host, opened: Opened) -> Table:
    """The node between its routers and the world: guests get out, masked; they reach neither the node, but for what is
    ``opened``, nor each other's routers nor, as forged overlay frames, another node's bridges."""
    uplinks, bridges = names.any_of("u"), names.any_of("b")
    overlay = f"ip saddr {host.underlay_address} udp dport {host.vxlan_port}"
    body = f"""\
{_render_opened(names, opened)}chain untracked_in {{
  type filter hook prerouting priority raw
  ct zone != 0 accept
  iifname {bridges} notrack
  ip daddr {host.underlay_address} udp dport {host.vxlan_port} iifname != {uplinks} notrack
  iifname {uplinks} ip daddr 127.0.0.0/8 drop
}}
chain untracked_out {{
  type filter hook output priority raw
  {overlay} notrack
}}
chain to_node {{
  type filter hook input priority filter
  iifname != {uplinks} accept
  ct state established,related accept
  icmp type echo-request accept
  ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
  iifname vmap @opened
  drop
}}
chain through_node {{
  type filter hook forward priority filter
  iifname {uplinks} udp dport {host.vxlan_port} drop
  iifname {uplinks} ct state invalid drop
  iifname {uplinks} ct status dnat accept
  iifname {uplinks} ip daddr 169.254.0.0/16 drop
  oifname {uplinks} ct state established,related accept
  oifname {uplinks} ct status dnat accept
  oifname {uplinks} drop
}}
chain out {{
  type nat hook postrouting priority srcnat
  oifname {bridges} accept
  ip saddr {UPLINKS} oifname != {uplinks} masquerade
}}
"""
    return Table("ip", names.node_table, body)


def render_refused(names: Names, refused: RefusedDestinations, opened: Opened) -> Table:
    """The fabric's own address ranges, which no guest reaches from outside its network: they are other networks'. At hosts'
    addresses a guest reaches only what it reaches of its own node's. Answers pass for what came in by a published port, to any
    client."""
    uplinks = names.any_of("u")
    published = elements(f"{protocol} . {port}" for protocol, port in sorted(refused.published))
    body = f"""\
set ranges {{
  type ipv4_addr
  flags interval
{_ranges(refused.cidrs)}}}
set hosts {{
  type ipv4_addr
  flags interval
{_ranges(refused.hosts)}}}
set published {{
  type inet_proto . inet_service
{published}}}
{_render_opened(names, opened)}chain through_node {{
  type filter hook forward priority filter
  iifname {uplinks} ct status dnat accept
  iifname {uplinks} ip daddr @ranges reject with icmp net-prohibited
  iifname != {uplinks} accept
  ip daddr != @hosts accept
  ct state established accept
  icmp type echo-request accept
  ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
  meta l4proto . th dport @published accept
  iifname vmap @opened
  reject with icmp host-prohibited
}}
"""
    return Table("ip", names.refused_table, body)


def render_taps(names: Names, ports: Iterable[Port]) -> Table:
    """The bridges: a guest sends only as itself and isn't a router, the gateway and DHCP stay on their node, nothing reaches
    the node's own stack through a bridge. Tagged frames don't pass: a kernel takes one with the tag of no VLAN as if it had
    none, and no rule would have checked what is in it. Each port may ask DHCP a few times a second: more would keep its server
    from the others, and fill its log. It asks for itself alone: the server goes by what a message says of its client, which could
    give back another's lease, or have its address refused to it."""
    taps, overlays, gateways = names.any_of("t"), names.any_of("x"), names.any_of("r")
    known = sorted(ports, key=lambda p: p.id)
    macs = elements(f'"{names.tap(p.id)}" . {p.mac}' for p in known)
    clients = elements(f'"{names.tap(p.id)}" . 0x{p.mac.replace(":", "")}' for p in known)
    addresses = elements(f'"{names.tap(p.id)}" . {p.address}' for p in known)
    to_gateway = f"ether daddr {GATEWAY_MAC} meta mark != {STEERED}"
    crossing = "\n".join(
        f"  {way} {overlays} {match} drop"
        for way in ("iifname", "oifname")
        for match in (f"ether saddr {GATEWAY_MAC}", to_gateway, "udp dport { 67, 68 }")
    )
    body = f"""\
set macs {{
  type ifname . ether_addr
{macs}}}
set addresses {{
  type ifname . ipv4_addr
{addresses}}}
set clients {{
  typeof iifname . {DHCP_CLIENT}
{clients}}}
set asking {{
  type ifname
  size 65535
  flags dynamic,timeout
  timeout 1m
}}
chain asks {{
  iifname . {DHCP_CLIENT} @clients return
  drop
}}
chain between_ports {{
  type filter hook forward priority 0
{crossing}
  iifname != {taps} accept
  iifname . ether saddr != @macs drop
  ether type {{ 8021q, 8021ad }} drop
  udp dport 67 update @asking {{ iifname limit rate over {DHCP_RATE}/second burst {DHCP_BURST} packets }} drop
  udp dport 67 jump asks
  udp sport 68 udp dport 67 ip saddr 0.0.0.0 accept
  udp sport 67 drop
  ether type ip iifname . ip saddr != @addresses drop
  ether type arp arp saddr ip 0.0.0.0 accept
  ether type arp iifname . arp saddr ip != @addresses drop
  ether type ip6 icmpv6 type {{ nd-router-advert, nd-redirect }} drop
  ether type ip6 udp sport 547 drop
}}
chain to_node {{
  type filter hook input priority 0
  iifname {taps} drop
  iifname {overlays} drop
  iifname {gateways} drop
}}
"""
    return Table("bridge", names.bridge_table, body)


def render_router(segment: Segment, more: str = "") -> Table:
    """A segment's router: out if the network has NAT, in only by published ports; ``more`` is text of other rules."""
    outbound = f'  iifname "{INSIDE}" oifname "{OUTSIDE}" ip saddr {segment.cidr} accept\n' if segment.nat else ""
    body = f"""\
chain through_router {{
  type filter hook forward priority filter; policy drop
  ct state established,related accept
  ct state invalid drop
  iifname "{OUTSIDE}" oifname "{INSIDE}" ct status dnat accept
  iifname "{INSIDE}" oifname "{INSIDE}" accept
{outbound}}}
chain to_router {{
  type filter hook input priority filter
  iifname != "{OUTSIDE}" accept
  ct state established,related accept
  icmp type echo-request accept
  ct status dnat accept comment "published ports of services that are proxied here"
  drop
}}
chain out {{
  type nat hook postrouting priority srcnat
  oifname "{OUTSIDE}" masquerade
}}
{more}"""
    return Table("ip", ROUTER_TABLE, body)


def render_shared(inside: Inside) -> Table:
    """A namespace with others behind it: they get out with its address, and nothing gets in, to them or to itself, but answers.
    Closed before there is anyone: it is made with the NIC."""
    behind = f'"{BEHIND}*"'
    body = f"""\
chain through {{
  type filter hook forward priority filter; policy drop
  ct state established,related accept
  iifname {behind} oifname "{inside.device}" accept
}}
chain to_itself {{
  type filter hook input priority filter; policy drop
  ct state established accept
}}
chain out {{
  type nat hook postrouting priority srcnat
  meta nfproto ipv4 oifname "{inside.device}" masquerade
}}
"""
    return Table("inet", SHARED_TABLE, body)


def render_older(host: Host, segment: Segment) -> str:
    """The part of a router's table that gives back what belongs to another node's router; "" if nothing may.

    Each of those that a guest may have connections through gets it, but for the one that it comes from: all but its own
    drop it. Should they ask each other in a ring, while a guest migrates or by a mistake, it ends as it does between any
    routers: ``dup`` counts the TTL down, and by itself would go on at zero."""
    older, hops = find_older(host, segment), older_hops(host, segment)
    if not older:
        return ""
    sets = "".join(
        f"set older_{number} {{\n  type ipv4_addr\n{elements(addresses)}}}\n"
        for number, addresses in enumerate(older.values())
    )
    back = "".join(
        f'  ether saddr != {router_mac(node)} ip saddr @older_{number} dup to {hops[node]} device "{INSIDE}"\n'
        for number, node in enumerate(older)
    )
    return f"""\
{sets}chain through_older {{
  type filter hook prerouting priority mangle
  iifname != "{INSIDE}" accept
  meta l4proto != tcp accept
  ct state != invalid accept
  ip ttl < 2 drop
  limit rate over 50000/second burst 5000 packets drop
{back}  drop
}}
"""


def name_migrated(names: Names, segment_id: str) -> list[tuple[str, str]]:
    """Family and name of the two tables of a segment with migrated guests."""
    return [(family, names.migrated_table(segment_id)) for family in ("netdev", "bridge")]


def render_migrated(names: Names, host: Host, segment: Segment) -> list[Table]:
    """The two tables of a segment with migrated guests. The set of passed-on MACs changes by the element, not here; the limit
    is far above what comes in the moment before other nodes know, and keeps a mistake of theirs from becoming a storm."""
    overlay, gateway = names.overlay(segment.id), names.gateway(segment.id)
    away = sorted({m.mac for m in segment.migrated if m.way == "out"} | set(older_routers(host, segment)))
    own = router_mac(host.underlay_address)
    passed = f"""\
set {PASSED_ON} {{
  type ether_addr
}}
chain arriving {{
  type filter hook ingress device "{overlay}" priority 0
  ether daddr @{PASSED_ON} limit rate 50000/second burst 5000 packets fwd to "{overlay}"
}}
"""
    routed = f"""\
set away {{
  type ether_addr
{elements(away)}}}
chain between_routers {{
  type filter hook forward priority -20
  iifname "{gateway}" oifname "{overlay}" ether type ip ether daddr @away ether saddr set {own}
}}
chain arrived {{
  type filter hook postrouting priority 0
  oifname "{gateway}" ether daddr {own} ether daddr set {GATEWAY_MAC}
}}
"""
    name = names.migrated_table(segment.id)
    return [Table("netdev", name, passed), Table("bridge", name, routed)]


def render_rules(rules: Iterable[Allowed], end: Literal["saddr", "daddr"], verdict: str) -> str:
    """Lines of a chain that give ``verdict`` to what the rules allow; ``end`` is where a packet names the other end."""
    return "".join(
        f"  {match} {verdict}\n".replace("   ", "  ") for rule in rules for match in _render_match(rule, end)
    )


def _render_match(rule: Allowed, end: str) -> list[str]:
    """A rule's match; nothing for one that matches nobody."""
    if rule.ranges == ():
        return []
    whom = "" if rule.ranges is None else f"ip {end} {{ {', '.join(_collapse(rule.ranges))} }} "
    if rule.protocol == "any":
        return [whom.rstrip()]
    if rule.protocol == "icmp" or (rule.first_port, rule.last_port) == (0, 65535):
        return [f"{whom}meta l4proto {rule.protocol}"]
    return [f"{whom}{rule.protocol} dport {rule.first_port}-{rule.last_port}"]


def _render_opened(names: Names, opened: Opened) -> str:
    """The parts of a table that its chains look up what is opened in."""
    segments = {id: rules for id, rules in sorted(opened.segments.items()) if rules}
    jumps = elements(f'"{names.uplink(id)}" : jump open_{id}' for id in segments)
    chains = "".join(
        f"chain open_{id} {{\n{render_rules(rules, 'daddr', 'accept')}}}\n" for id, rules in segments.items()
    )
    return f"""\
set resolvers {{
  type ipv4_addr
{elements(sorted(opened.resolvers))}}}
{chains}map opened {{
  type ifname : verdict
{jumps}}}
"""


def _ranges(cidrs: Iterable[str]) -> str:
    return elements(_collapse(cidrs))


def _collapse(cidrs: Iterable[str]) -> list[str]:
    return [str(found) for found in collapse_addresses(map(IPv4Network, cidrs))]


def elements(items: Iterable[str]) -> str:
    """An elements line; nft refuses an empty one, so nothing at all for nothing."""
    joined = ", ".join(items)
    return f"  elements = {{ {joined} }}\n" if joined else ""
