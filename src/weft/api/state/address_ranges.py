"""The address ranges of all the fabric's networks, and its nodes' own addresses: each node keeps its guests out of both.

Reads networks and nodes. A node's report names the version it has: the answer contains the list only if there is a newer one.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Collection, Iterable
from typing import NamedTuple

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.network import NetworkSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix

JOIN_EVERY_SECONDS = 1.0  # at most: thousands of networks may come at once


class Ranges(NamedTuple):
    """``networks`` and ``nodes`` in CIDR form."""

    version: str
    networks: list[str]
    nodes: list[str]


class Reached(msgspec.Struct, frozen=True):
    """The part of a node's report with the address by which other nodes reach it."""

    address: str = ""


class AddressRanges:
    """Every network's range and every node's address, joined where they touch: the list grows with the address plan, not with
    the number of networks."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._networks = PrefixCache(store, kind_prefix("network"), of_envelope(_network), clock)
        self._nodes = PrefixCache(store, kind_prefix("node"), of_envelope(_address), clock)
        self._newest = Ranges("", [], [])
        self._at, self._again_at = (-1, -1), 0.0
        self._clock = clock

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await asyncio.gather(self._networks.run(), self._nodes.run())

    def newer_than(self, version: str) -> Ranges | None:
        """The newest ranges; None if ``version`` is theirs, or before the first read of the store."""
        if not (self._networks.live and self._nodes.live):
            return None
        now, at = self._clock.elapsed(), (self._networks.changes, self._nodes.changes)
        if self._at != at and now >= self._again_at:
            self._at, self._again_at = at, now + JOIN_EVERY_SECONDS
            networks = join_ranges(cidr for _, cidr in self._networks.found.values())
            nodes = join_ranges(self._nodes.found.values())
            text = f"{' '.join(networks)} nodes {' '.join(nodes)}"
            self._newest = Ranges(hashlib.sha256(text.encode()).hexdigest()[:16], networks, nodes)
        return self._newest if self._newest.version != version else None

    def find_node(self, cidr: str) -> str:
        """The address of a node in that range; "" if there is none, or before the first read of the store."""
        within = ipaddress.IPv4Network(cidr)
        addresses = (found.removesuffix("/32") for found in self._nodes.found.values()) if self._nodes.live else ()
        return next((address for address in addresses if ipaddress.IPv4Address(address) in within), "")

    def find_gone(self, network_uids: Collection[str]) -> list[str]:
        """Those of the networks that don't exist any more; none before the first read of the store."""
        if not network_uids or not self._networks.live:
            return []
        there = {uid for uid, _ in self._networks.found.values()}
        return [uid for uid in network_uids if uid not in there]


def join_ranges(cidrs: Iterable[str]) -> list[str]:
    """The same addresses in the fewest ranges, in order."""
    return [str(found) for found in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, cidrs))]


def _network(envelope: Envelope) -> tuple[str, str] | None:
    """Uid and range; None for a network that is being deleted: nobody uses it any more."""
    if envelope.deleting_since is not None:
        return None
    return envelope.uid, decode_part(envelope.spec, NetworkSpec).cidr


def _address(envelope: Envelope) -> str | None:
    """The address that a node reports; None if it reports none, or one that no machine can have."""
    try:
        address = ipaddress.IPv4Address(decode_part(envelope.report, Reached).address)
    except ValueError:
        return None
    return None if address.is_unspecified or address.is_loopback or address.is_multicast else f"{address}/32"
