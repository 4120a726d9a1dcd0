"""Batches of decisions from when they are made until their outcome is known, several at once: while the store makes one
durable the next is decided on.

What they take is counted in the snapshot all the time, so that each sees what those before it were given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from weft.informer.commit import Commit
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.endpoint import EndpointSpec
from weft.scheduler.table.snapshot import Snapshot

MOST = 4
_TURNS = 3  # of the loop, until what is given to a term has left


class Batch:
    """Decisions on the workloads with these ``keys``. ``assumed`` are keys of allocations that they make, ``resized`` of those
    that they change, ``reserved`` are addresses of endpoints that they make, and ``attached`` has, by uid of the volume,
    which workload got it."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys = frozenset(keys)
        self.assumed: list[str] = []
        self.resized: list[str] = []
        self.reserved: list[EndpointSpec] = []
        self.attached: dict[str, Item] = {}

    def take_back(self, snapshot: Snapshot, first: int, volumes: Iterable[AllocatedVolume]) -> None:
        """Undo the placements from the ``first`` on, which have these ``volumes``; addresses stay reserved."""
        for key in self.assumed[first:]:
            snapshot.drop_allocation(key)
        del self.assumed[first:]
        for volume in volumes:
            self.attached.pop(volume.uid, None)


class CommittedBatch:
    """A batch whose commits are through, or have ``failed``."""

    def __init__(self, batch: Batch, commits: Sequence[Commit], failed: Sequence[Commit]) -> None:
        self.batch = batch
        self.failed = failed
        self.in_vain = bool(failed) and len(failed) == len(commits)


class PendingBatches:
    """The batches that are under way, in their order; at most MOST of them."""

    def __init__(self, term: LeaderLease) -> None:
        self._term = term
        self._sent: deque[tuple[Batch, Sequence[Commit], asyncio.Future[list[Commit]]]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def holds(self, keys: Iterable[str]) -> bool:
        """Whether one of these workloads is decided on in a batch that is under way."""
        return any(key in batch.keys for batch, _, _ in self._sent for key in keys)

    def attached(self, volume_uid: str) -> Item | None:
        """The workload that got this volume in a batch that is under way."""
        return next(
            (workload for batch, _, _ in self._sent if (workload := batch.attached.get(volume_uid)) is not None), None
        )

    async def send(self, batch: Batch, commits: Sequence[Commit]) -> None:
        """Have it committed; returns once that has begun."""
        self._sent.append((batch, commits, asyncio.ensure_future(self._term.perform(commits))))
        for _ in range(_TURNS):
            await self._term.clock.sleep(0)

    async def land(self) -> CommittedBatch:
        """Wait for the oldest one. Raises LeadershipLost."""
        batch, commits, sending = self._sent[0]
        failed = await sending
        self._sent.popleft()
        return CommittedBatch(batch, commits, failed)

    async def close(self) -> None:
        """Wait for none of them any more."""
        left = [sending for _, _, sending in self._sent]
        for sending in left:
            sending.cancel()
        await asyncio.gather(*left, return_exceptions=True)
