"""The address ranges of all the fabric's networks, and the own addresses of its nodes and of its servers' machines: each node
keeps its guests out of them. And what each network opens.

Reads networks, nodes and servers. A node's report names the version it has: the answer contains the list only if there is a
newer one.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.network import NetworkSpec
from weft.kinds.server import SERVER, ServerStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix
from weft.protocol.report import NO_PLACE, NetworkRules, ServerPlace

JOIN_EVERY_SECONDS = 1.0  # at most: thousands of networks may come at once


MOST_ADDRESSES = 64  # of one node; more are not told


class Ranges(NamedTuple):
    """``networks`` and ``nodes`` in CIDR form."""

    version: str
    networks: list[str]
    nodes: list[str]
    server: ServerPlace  # of all of them together


class Reached(msgspec.Struct, frozen=True):
    """The part of a node's report with the address by which other nodes reach it, and all that it has."""

    address: str = ""
    addresses: list[str] = []


class NetworkFacts(msgspec.Struct, frozen=True):
    """Facts of one network."""

    uid: str
    cidr: str
    rules: NetworkRules


class AddressRanges:
    """Every network's range and every node's address, joined where they touch: the list grows with the address plan, not with
    the number of networks."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._networks = PrefixCache(store, kind_prefix("network"), of_envelope(_network), clock)
        self._nodes = PrefixCache(store, kind_prefix("node"), of_envelope(_addresses), clock)
        self._servers = PrefixCache(store, kind_prefix(SERVER.name), of_envelope(_place), clock)
        self._newest = Ranges("", [], [], NO_PLACE)
        self._at, self._again_at = (-1, -1, -1), 0.0
        self._rules: dict[str, NetworkRules] = {}
        self._rules_at = -1
        self._own = NO_PLACE
        self._clock = clock

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await asyncio.gather(self._networks.run(), self._nodes.run(), self._servers.run())

    def put_server(self, addresses: Iterable[str], api: Iterable[int], functions: Iterable[int]) -> None:
        """This server's machine has these addresses, and these TCP ports for the API with its streams and for functions: they
        count before its object has them."""
        place = ServerPlace(list(addresses), list(api), list(functions))
        if place != self._own:
            self._own, self._at = place, (-1, -1, -1)

    def newer_than(self, version: str) -> Ranges | None:
        """The newest ranges; None if ``version`` is theirs, or before the first read of the store."""
        if not (self._networks.live and self._nodes.live and self._servers.live):
            return None
        now, at = (
            self._clock.elapsed(),
            (self._networks.changes, self._nodes.changes, self._servers.changes),
        )
        if self._at != at and now >= self._again_at:
            self._at, self._again_at = at, now + JOIN_EVERY_SECONDS
            networks = join_ranges(network.cidr for network in self._networks.found.values())
            nodes = join_ranges(address for found in self._nodes.found.values() for address in filter(None, found))
            servers = _join_places([self._own, *self._servers.found.values()])
            found = msgspec.json.encode((networks, nodes, servers))
            self._newest = Ranges(hashlib.sha256(found).hexdigest()[:16], networks, nodes, servers)
        return self._newest if self._newest.version != version else None

    def find_node(self, cidr: str) -> str:
        """The address of a node in that range; "" if there is none, or before the first read of the store."""
        within = ipaddress.IPv4Network(cidr)
        addresses = (found[0] for found in self._nodes.found.values() if found[0]) if self._nodes.live else ()
        return next((address for address in addresses if ipaddress.IPv4Address(address) in within), "")

    def find_gone(self, network_uids: Collection[str]) -> list[str]:
        """Those of the networks that don't exist any more; none before the first read of the store."""
        if not network_uids or not self._networks.live:
            return []
        there = self._read_rules()
        return [uid for uid in network_uids if uid not in there]

    def find_rules(self, network_uids: Collection[str]) -> dict[str, NetworkRules]:
        """Those of the networks that exist; none before the first read of the store."""
        if not network_uids or not self._networks.live:
            return {}
        known = self._read_rules()
        return {uid: known[uid] for uid in network_uids if uid in known}

    def _read_rules(self) -> dict[str, NetworkRules]:
        if self._rules_at != self._networks.changes:
            self._rules_at = self._networks.changes
            self._rules = {network.uid: network.rules for network in self._networks.found.values()}
        return self._rules


def join_ranges(cidrs: Iterable[str]) -> list[str]:
    """The same addresses in the fewest ranges, in order."""
    return [str(found) for found in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, cidrs))]


def _join_places(places: Sequence[ServerPlace]) -> ServerPlace:
    """All of them as one: a port that one server has is open at all of them."""
    return ServerPlace(
        join_ranges({address for place in places for address in place.ranges}),
        sorted({port for place in places for port in place.api}),
        sorted({port for place in places for port in place.functions}),
    )


def _place(envelope: Envelope) -> ServerPlace:
    """The place of a server, also of one that is away: its machine may still be there."""
    status = decode_part(envelope.status, ServerStatus)
    return ServerPlace(list(filter(None, map(read_address, status.addresses))), status.api_ports, status.function_ports)


def _network(envelope: Envelope) -> NetworkFacts | None:
    """None for a network that is being deleted: nobody uses it any more."""
    if envelope.deleting_since is not None:
        return None
    spec = decode_part(envelope.spec, NetworkSpec)
    return NetworkFacts(envelope.uid, spec.cidr, NetworkRules(spec.nat, spec.open))


def _addresses(envelope: Envelope) -> tuple[str, ...] | None:
    """The addresses that a node reports, first the one by which others reach it, "" if it has none; None without any. What no
    machine can have is left out."""
    report = decode_part(envelope.report, Reached)
    first = read_address(report.address)
    others = filter(None, map(read_address, report.addresses[:MOST_ADDRESSES]))
    found = (first, *dict.fromkeys(address for address in others if address != first))
    return found if any(found) else None


def read_address(written: str) -> str:
    """The address; "" for anything that no machine is reached by."""
    try:
        address = ipaddress.IPv4Address(written)
    except ValueError:
        return ""
    nobody = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return "" if nobody else str(address)
