"""Writes the nft table that keeps one guest from taking a node's whole connection table. Pure.

It is changed rule by rule and never replaced: with its set the kernel would forget how many connections each guest has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.rules import Table

# The kernel's own values are days for an open connection, and minutes for one that has been closed or was never answered.
_TIMEOUTS = {
    "established": kernel.ESTABLISHED_SECONDS,
    "syn_sent": 30,
    "syn_recv": 30,
    "fin_wait": 30,
    "time_wait": 20,
}


# Of a guest with its own resolver, beside its part: without names it couldn't even end what it has open. More count in its part.
LOOKUPS = 128


@dataclass(frozen=True)
class LastingTable(Table):
    """``kept`` are its sets and objects, which outlive each change; ``body`` is what its one chain does with new connections."""

    kept: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256((self.kept + self.body).encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        head = f"table {self.family} {self.name}"
        return f"""\
{head} {{
{self.kept}chain limited {{
  type filter hook forward priority filter + 10
}}
}}
flush chain {self.family} {self.name} limited
{head} {{
chain limited {{
  ct state != new accept comment "{self.digest}"
{self.body}}}
}}
"""


def render_limits(names: Names, segments: Iterable[Segment], most: int) -> LastingTable:
    """Render the rules by which no address of a guest has more than ``most`` open connections on this node, those that it opened
    and those opened to it together: a new one is dropped. Neither of two guests can fill the other's node. Filters come first: what
    they drop doesn't count; nor do the first ``LOOKUPS`` to the guest's own resolver, its gateway."""
    bridges, uplinks = names.any_of("b"), names.any_of("u")
    limit = f"ct count over {most} }} drop"
    known = sorted(segments, key=lambda one: one.id)
    lookups = "".join(
        f'  iifname "{names.bridge(segment.id)}" ip saddr {segment.cidr} ip daddr {segment.gateway}'
        f" meta l4proto {{ tcp, udp }} th dport 53 add @lookups {{ iifname . ip saddr ct count {LOOKUPS} }} accept\n"
        for segment in known
    )
    ends = "".join(
        f'  iifname "{names.bridge(segment.id)}" ip {end} {segment.cidr} ip {end} != {_spared(segment)}'
        f" add @connections {{ iifname . ip {end} {limit}\n"
        for segment in known
        for end in ("saddr", "daddr")
    )
    body = f"""\
  iifname != {bridges} iifname != {uplinks} oifname != {uplinks} accept
  meta l4proto tcp ct timeout set "guests"
{lookups}{ends}"""
    timeouts = ", ".join(f"{state} : {seconds}" for state, seconds in _TIMEOUTS.items())
    kept = f"""\
set connections {{
  type ifname . ipv4_addr
  size 65535
  flags dynamic
}}
set lookups {{
  type ifname . ipv4_addr
  size 65535
  flags dynamic
}}
ct timeout guests {{
  protocol tcp
  l3proto ip
  policy = {{ {timeouts} }}
}}
"""
    return LastingTable(*name_limits(names), body, kept)


def _spared(segment: Segment) -> str:
    """The addresses in a segment that no guest has: what goes to a service counts for its client and its target."""
    services = [service.address for service in segment.services]
    return f"{{ {', '.join([segment.gateway, *services])} }}" if services else segment.gateway


def name_limits(names: Names) -> tuple[str, str]:
    """Its family and name."""
    return "ip", f"weft_{names.prefix}_limits"
