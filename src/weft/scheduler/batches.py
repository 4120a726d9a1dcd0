"""Batches of decisions from when they are made until their outcome is known, several at once: while the store makes one
durable the next is decided.

The snapshot counts what they take all the time, so that each sees the placements of those before it.
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
_TURNS = 3  # of the event loop, until the store has a commit


class Batch:
    """Decisions on the workloads with these ``keys``."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys = frozenset(keys)
        self.assumed: list[str] = []  # keys of allocations that they make
        self.resized: list[str] = []  # keys of allocations that they change
        self.reserved: list[EndpointSpec] = []  # endpoints that they make
        self.attached: dict[str, Item] = {}  # by uid of a volume: the workload that got it
        self.replans = False  # leases that have their places: what they leave isn't free before that is stored
        self.migrates = False  # one that is suspended begins to migrate to where it resumes

    def take_back(self, snapshot: Snapshot, first: int, volumes: Iterable[AllocatedVolume]) -> None:
        """Undo the placements from the ``first`` on, which have these ``volumes``; addresses stay reserved."""
        for key in self.assumed[first:]:
            snapshot.drop_allocation(key)
        del self.assumed[first:]
        for volume in volumes:
            self.attached.pop(volume.uid, None)


class CommittedBatch:
    """A batch whose commits are stored, or have ``failed``."""

    def __init__(self, batch: Batch, commits: Sequence[Commit], failed: Sequence[Commit]) -> None:
        self.batch = batch
        self.failed = failed
        self.in_vain = bool(failed) and len(failed) == len(commits)


class PendingBatches:
    """The batches that are being committed, in their order; at most MOST of them."""

    def __init__(self, leadership: LeaderLease) -> None:
        self._leadership = leadership
        self._clock = leadership.clock
        self._sent: deque[tuple[Batch, Sequence[Commit], asyncio.Future[list[Commit]]]] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def replans(self) -> bool:
        """Whether a pending batch replans leases that have their places."""
        return any(batch.replans for batch, _, _ in self._sent)

    def holds(self, keys: Iterable[str]) -> bool:
        """Whether a pending batch decides on one of these workloads."""
        return any(key in batch.keys for batch, _, _ in self._sent for key in keys)

    def attached(self, volume_uid: str) -> Item | None:
        """The workload that got this volume in a pending batch."""
        return next(
            (workload for batch, _, _ in self._sent if (workload := batch.attached.get(volume_uid)) is not None), None
        )

    async def send(self, batch: Batch, commits: Sequence[Commit]) -> None:
        """Begin to commit it."""
        self._sent.append((batch, commits, asyncio.ensure_future(self._leadership.perform(commits))))
        for _ in range(_TURNS):
            await self._clock.sleep(0)

    async def land(self) -> CommittedBatch:
        """Wait for the oldest batch. Raises LeadershipLost."""
        batch, commits, sending = self._sent[0]
        failed = await sending
        self._sent.popleft()
        return CommittedBatch(batch, commits, failed)

    async def close(self) -> None:
        """Cancel all of them."""
        left = [sending for _, _, sending in self._sent]
        for sending in left:
            sending.cancel()
        await asyncio.gather(*left, return_exceptions=True)
