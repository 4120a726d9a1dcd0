"""The address ranges of all the fabric's networks, as nodes are told them: each node keeps its guests out of the others'.

Reads networks. A node names the version it has, so that an answer carries the list only to those that lack it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable

from weft.api.mirror import Mirror
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.kinds.network import NetworkSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import kind_prefix

JOIN_EVERY_SECONDS = 1.0  # at most: thousands of networks may come at once


class Ranges:
    """Every network's range, joined where they touch: what is told grows with the address plan, not with tenants."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._networks = Mirror(store, kind_prefix("network"), _network, clock)
        self._told: tuple[str, list[str]] = ("", [])
        self._at, self._again_at = -1, 0.0
        self._clock = clock

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await self._networks.run()

    def newer_than(self, version: str) -> tuple[str, list[str]] | None:
        """The version and the ranges, if they aren't those of ``version``; None too while nothing is known."""
        if not self._networks.live:
            return None
        now = self._clock.elapsed()
        if self._at != self._networks.changes and now >= self._again_at:
            self._at, self._again_at = self._networks.changes, now + JOIN_EVERY_SECONDS
            cidrs = join_ranges(cidr for _, cidr in self._networks.found.values())
            self._told = hashlib.sha256(" ".join(cidrs).encode()).hexdigest()[:16], cidrs
        return self._told if self._told[0] != version else None

    def find_gone(self, network_uids: Collection[str]) -> list[str]:
        """Those of the networks that there are no more; none while nothing is known."""
        if not network_uids or not self._networks.live:
            return []
        there = {uid for uid, _ in self._networks.found.values()}
        return [uid for uid in network_uids if uid not in there]


def join_ranges(cidrs: Iterable[str]) -> list[str]:
    """The same addresses in as few ranges as can be, in order."""
    return [str(found) for found in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, cidrs))]


def _network(envelope: Envelope) -> tuple[str, str] | None:
    """Uid and range; nothing of one that is being deleted: nothing of it is in use any more."""
    if envelope.deleting_since is not None:
        return None
    return envelope.uid, decode_part(envelope.spec, NetworkSpec).cidr
