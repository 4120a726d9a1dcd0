"""Latency peers: the few nodes to which a node measures the distance. They are drawn so that a node that comes or goes changes the
peers of few others.

Reads nodes, and the network topology for how often they measure bandwidth. A node's report names the version of the peers it
has: the answer contains them only if there is a newer one.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.network_topology import DEFAULT_PROBES, NETWORK_TOPOLOGY, NetworkTopologySpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix
from weft.protocol.report import Peer, Peers
from weft.trust.probe.echo import node_key, pair_key

MOST_PEERS = 16  # with 12, simulated nodes of one site didn't all know each other
SORT_EVERY_SECONDS = 1.0  # at most: thousands of nodes may come at once


class Answering(msgspec.Struct, frozen=True):
    """The part of a node's report with the address at which it answers probes."""

    address: str = ""
    echo_port: int = 0


class LatencyPeers:
    """All keys derive from ``secret``."""

    def __init__(self, store: Store, secret: bytes, clock: Clock) -> None:
        self._nodes = PrefixCache(store, kind_prefix("node"), of_envelope(_answering), clock)
        self._topologies = PrefixCache(store, kind_prefix(NETWORK_TOPOLOGY.name), of_envelope(_probes), clock)
        self._secret, self._clock = secret, clock
        self._probes = DEFAULT_PROBES
        self._ring: list[tuple[bytes, str, Answering]] = []
        self._versions: dict[str, str] = {}  # by uid, until the ring changes
        self._at, self._again_at = -1, 0.0

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await asyncio.gather(self._nodes.run(), self._topologies.run())

    def newer_than(self, version: str, uid: str) -> Peers | None:
        """The peers of node ``uid``; None if ``version`` is theirs, or before the first read of the store."""
        if not self._nodes.live:
            return None
        self._sort()
        self._read_probes()
        if version and self._versions.get(uid) == version:
            return None
        chosen = self._choose(uid)
        key = node_key(self._secret, uid)
        text = " ".join(f"{other} {at.address} {at.echo_port}" for other, at in chosen)
        current = hashlib.sha256(key + f"{self._probes} {text}".encode()).hexdigest()[:16]
        self._versions[uid] = current
        if current == version:
            return None
        peers = [
            Peer(other, at.address, at.echo_port, pair_key(node_key(self._secret, other), uid).hex())
            for other, at in chosen
        ]
        return Peers(current, key.hex(), peers, self._probes)

    def _read_probes(self) -> None:
        if self._topologies.live:
            probes = next(iter(self._topologies.found.values()), DEFAULT_PROBES)
            if probes != self._probes:
                self._probes = probes
                self._versions.clear()

    def _sort(self) -> None:
        now = self._clock.elapsed()
        if self._at != self._nodes.changes and now >= self._again_at:
            self._at, self._again_at = self._nodes.changes, now + SORT_EVERY_SECONDS
            ring = sorted((_place(uid), uid, at) for uid, at in self._nodes.found.values())
            if ring != self._ring:
                self._ring = ring
                self._versions.clear()

    def _choose(self, uid: str) -> list[tuple[str, Answering]]:
        """All others if they are few; else, for each of some points of the node's own, the next node on the ring."""
        if len(self._ring) <= MOST_PEERS + 1:
            return [(other, at) for _, other, at in self._ring if other != uid]
        chosen: dict[str, Answering] = {}
        for number in range(MOST_PEERS):
            start = bisect.bisect(self._ring, (_place(f"{uid} {number}"),))
            for step in range(len(self._ring)):
                _, other, at = self._ring[(start + step) % len(self._ring)]
                if other != uid and other not in chosen:
                    chosen[other] = at
                    break
        return list(chosen.items())


def _place(text: str) -> bytes:
    """The position on the ring."""
    return hashlib.sha256(text.encode()).digest()[:8]


def _probes(envelope: Envelope) -> int:
    return decode_part(envelope.spec, NetworkTopologySpec).bandwidth_probes


def _answering(envelope: Envelope) -> tuple[str, Answering] | None:
    at = decode_part(envelope.report, Answering)
    return (envelope.uid, at) if at.address and at.echo_port and envelope.deleting_since is None else None
