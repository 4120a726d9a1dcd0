"""Times at which nodes were heard last, by the clock of this process alone: upper bounds, from what the store's leases have left.

A new one knows of no node: until it has seen more, each counts as heard when this began. While the leases couldn't be read, a node
may have been heard whose lease is over since. This lasts as long as one leadership, since a store that starts again without its
leases ends that, too; all controllers of that leadership share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocationReport, AllocationSpec, is_held
from weft.objects.errors import StoreUnavailable
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS

SUSPECT_SECONDS = 8.0  # unheard for so long, a node may be off: heartbeats come every 8 s
PROMPT_SECONDS = 5.5  # of one whose guests end if it is lost: every 5 s
FRESH_SECONDS = 2.0  # an older read decides nothing
READ_SECONDS = 0.5  # one that is younger isn't repeated, unless a node has reported since
MARGIN_SECONDS = 1.0  # by which a store may be wrong about the time that is left


class Renewals:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._floor = clock.elapsed()  # before which no node counts as heard last
        self._bounds: dict[str, float] = {}  # elapsed seconds, by the node's uid
        self.live: frozenset[str] = frozenset()  # uids of nodes, by the last read
        self._read_at, self._has_news = -math.inf, False

    async def observe(self) -> None:
        """Read the leases, unless that was just done; a failed read changes nothing."""
        before = self._clock.elapsed()
        if before - self._read_at < READ_SECONDS and not self._has_news:
            return
        self._has_news = False
        try:
            leases = await self._store.leases(LEASE_PREFIX)
        except StoreUnavailable:
            return
        after = self._clock.elapsed()
        if (missed := after - LEASE_SECONDS + MARGIN_SECONDS) > self._read_at:
            self._floor = max(self._floor, missed)
        for lease in leases:
            renewed = after - max(0.0, LEASE_SECONDS - lease.remaining_seconds) + MARGIN_SECONDS
            self._note(lease.name.removeprefix(LEASE_PREFIX), renewed)
        self.live, self._read_at = frozenset(lease.name.removeprefix(LEASE_PREFIX) for lease in leases), before

    def note_report(self, uid: str) -> None:
        """Its report has changed."""
        self._has_news = True
        self._note(uid, self._clock.elapsed())

    def count_silence(self, uid: str) -> float:
        """Seconds for which the node certainly hasn't been heard; 0 if the leases can't be read now."""
        now = self._clock.elapsed()
        heard = max(self._floor, self._bounds.get(uid, self._floor))
        return max(0.0, now - heard) if now - self._read_at <= FRESH_SECONDS else 0.0

    def count_since_renewal(self, uid: str) -> float:
        """Seconds since the node renewed its lease, about; infinite for one that this process knows nothing of."""
        return self._clock.elapsed() - self._bounds.get(uid, -math.inf)

    def is_live(self, uid: str) -> bool:
        """Whether its lease lives, or may, since the leases can't be read now."""
        return uid in self.live or self._clock.elapsed() - self._read_at > FRESH_SECONDS

    def is_suspect(self, view: View, node: Item) -> bool:
        """Whether a heartbeat of it is missing, so that it may be off."""
        silence = self.count_silence(node.uid)
        return silence > SUSPECT_SECONDS or (silence > PROMPT_SECONDS and _is_prompt(view, node))

    def list_silent(self, seconds: float) -> Iterator[str]:
        """The uids of nodes that have been seen, and not heard for so long."""
        return (uid for uid in self._bounds if self.count_silence(uid) > seconds)

    def _note(self, uid: str, at: float) -> None:
        self._bounds[uid] = max(at, self._bounds.get(uid, at))


def _is_prompt(view: View, node: Item) -> bool:
    places = view.find(ALLOCATIONS_BY_NODE, node.uid)
    return any(is_held(place.spec(AllocationSpec), place.report(AllocationReport)) for place in places)
