"""The agent's state of one allocation: the server's last version, this node's steps, and the guest's facts.

``checkpoint`` is the durable part. It is written, with the server's version, before and after each step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from msgspec.structs import replace

from weft.agent.state.allocation import (
    Checkpoint,
    DiskRelocation,
    Health,
    LocalAllocation,
    MigrationState,
    Run,
    SetUp,
    StepFailure,
    Taking,
    place_disks,
    read_allocation,
)
from weft.agent.state.checkpoint import CheckpointFailed, CheckpointStore
from weft.agent.state.departure import find_departed, recall_migration
from weft.agent.state.snapshots import find_taken
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import AllocatedNic, AllocationSpec, is_lost, list_disks
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, SnapshotReport
from weft.kinds.fields.service.readiness import ReadinessReport
from weft.objects.envelope import Envelope

log = logging.getLogger("weft.agent")


class AllocationState:
    """``store`` keeps the checkpoint."""

    def __init__(self, envelope: Envelope, checkpoint: Checkpoint, store: CheckpointStore) -> None:
        self.envelope = envelope
        local = read_allocation(envelope)
        self._spec = local.spec  # as the server sent it, without relocations
        self.local = place_disks(local, checkpoint.relocation)
        if checkpoint.migration is None:
            checkpoint = replace(checkpoint, migration=recall_migration(checkpoint, local.spec))
        if not checkpoint.restored:  # a lost checkpoint must not restore its disks again
            checkpoint = replace(checkpoint, restored=local.report.restored)
        self.checkpoint = checkpoint
        self._store, self._saving = store, asyncio.Lock()
        self._saved: tuple[object, ...] | None = None
        self.released = False  # all of it is gone from the node: nothing is written any more
        # The server's view of it.
        self.taken_up = False  # read from a checkpoint by this agent
        self.unconfirmed = False  # so, and not confirmed by the server yet
        self.deleted = False  # the server has deleted it, and its release continues here
        self.replaced = False  # a later incarnation was placed elsewhere
        self.stale_volumes = False  # the data of all its volumes is on another node by now
        # Its relation to the others on this node.
        self.superseded = False  # a later incarnation is placed here, or elsewhere
        self.blocked = ""  # the workload that must end before it may start
        self.unheld = (
            "waits until it is confirmed that it may run here"  # why a guest that is guarded may not start; "": it may
        )
        # Its guest.
        self.guest: GuestFacts | None = None  # at the last inspection
        self.alive = checkpoint.run in ("up", "starting")
        self.up_since: float | None = None  # elapsed seconds
        self.ended_in_a_row = 0  # ends by itself
        self.restart_at = 0.0  # elapsed seconds
        self.health = Health()
        self.set_up = SetUp()
        self.readiness: dict[str, ReadinessReport] = {}  # by service uid, and by ``name_port``
        # Its steps.
        self.failure: StepFailure | None = None  # of the last one
        self.prepared = False  # all but the start is done
        self.fetched = False  # its image, ahead of that
        self.unplugged = False  # its ports were removed
        self.snapshot_at = 0.0  # when to ask again for one whose memory is being saved (elapsed seconds)
        self.held_until = (
            0.0  # it stands still for a group's snapshot until then at most (elapsed seconds); 0: it doesn't
        )
        self.woken = asyncio.Event()  # inspect it again
        self.changed = asyncio.Event()  # drop the planned steps

    @property
    def unwell(self) -> str:
        """Why its health check ends it, or ""."""
        container = self.local.spec.container
        check = container.health_check if container is not None else None
        ends = check is not None and check.on_unhealthy == "restart" and self.health.state == "unhealthy"
        return self.health.message if ends else ""

    def wake(self) -> None:
        """The guest may have changed."""
        self.woken.set()

    def replan(self) -> None:
        """Its facts have changed: drop the planned steps, and retry a failed one at once."""
        self.failure = None
        self.changed.set()
        self.woken.set()

    def update(self, envelope: Envelope) -> bool:
        """The server listed or changed the allocation; whether the plan may change."""
        sent = read_allocation(envelope, self._spec if self.has_read(envelope) else None)
        local, old = self._place(sent), self.local
        before, orphan = (old.spec, old.deleting, self.checkpoint.orphan), is_lost(local.spec) and not local.deleting
        self.envelope, self.local, self._spec = envelope, local, sent.spec
        leftover = find_leftover(self.checkpoint.leftover, old.spec, local.spec)
        migration = self.checkpoint.migration or recall_migration(self.checkpoint, local.spec)
        taken = find_taken(self.checkpoint, local.spec)
        self.checkpoint = replace(self.checkpoint, orphan=orphan, leftover=leftover, migration=migration, taken=taken)
        return before != (local.spec, local.deleting, orphan)

    def has_read(self, envelope: Envelope) -> bool:
        """Whether its spec is the last one: most changes that a node receives are its own reports."""
        return self.envelope.spec == envelope.spec

    def mark_orphan(self) -> None:
        """The server's list lacks the allocation: keep everything, begin and end nothing."""
        self.checkpoint = replace(self.checkpoint, orphan=True)
        self.replan()

    def confirm(self) -> None:
        """The server has listed it, or didn't answer for long enough."""
        if self.unconfirmed:
            self.unconfirmed = False
            self.wake()

    def note_replaced(self, stale_volumes: Iterable[str]) -> None:
        """It was placed elsewhere, or deleted. ``stale_volumes``: their data is on another node by now; they are removed with the
        allocation, or kept under another name, if it has no other volumes."""
        mine = {volume.uid for volume in self.local.spec.volumes}
        self.replaced, self.deleted = True, not is_lost(self.local.spec)  # a lost one waits for its release
        self.stale_volumes = bool(mine) and mine <= set(stale_volumes)

    def relate(self, *, superseded: bool, blocked: str) -> None:
        """Set its relation to other incarnations on this node, and to writers of its volumes."""
        if (superseded, blocked) != (self.superseded, self.blocked):
            self.superseded, self.blocked = superseded, blocked
            self.replan()

    # --- its durable part --------------------------------------------------------------------------------------------

    async def keep_relocation(self, relocation: DiskRelocation) -> None:
        """Save the state of a disk's relocation. Raises CheckpointFailed."""
        self.checkpoint = replace(self.checkpoint, relocation=relocation)
        await self.save()
        self.local = place_disks(self.local, relocation)
        self.wake()

    async def keep_migration(self, migration: MigrationState) -> None:
        """Save this node's part of the allocation's migration. Raises CheckpointFailed."""
        allocated = self.local.spec.migration
        runs = migration.taken and migration.role == "target" and allocated is not None and allocated.mode == "live"
        run: Run = "up" if runs else self.checkpoint.run
        self.checkpoint = replace(self.checkpoint, migration=migration, run=run)
        await self.save()
        self.wake()

    async def save(self, checkpoint: Checkpoint | None = None) -> None:
        """Write ``checkpoint``, or the current one after other writes. Raises CheckpointFailed."""
        if not self._saving.locked() and self._to_save(checkpoint or self.checkpoint) == self._saved:
            return
        async with self._saving:
            checkpoint = checkpoint or self.checkpoint
            if self.released:
                return
            state = self._to_save(checkpoint)
            if state != self._saved and (checkpoint.made or checkpoint.run != "new"):
                await asyncio.to_thread(self._store.save, self.local.id, self.envelope, checkpoint)
                self._saved = state

    async def note(self, checkpoint: Checkpoint) -> None:
        """Save what the next turn would find out anyway, or save then; a failure is logged."""
        try:
            await self.save(checkpoint)
        except CheckpointFailed as problem:
            log.warning("%s: %s", self.local.what, problem.message)

    async def note_departure(self) -> None:
        """Save for good that the guest has left, or came by a migration: an older store may list it again."""
        migration = find_departed(self.checkpoint)
        if migration is None:
            return
        try:
            await asyncio.to_thread(self._store.save_departure, self.local.id, migration)
        except CheckpointFailed as problem:
            log.warning("%s: %s", self.local.what, problem.message)

    def release(self) -> None:
        """All of it is gone from the node: remove the checkpoint."""
        self._store.remove(self.local.id)
        self.released, self.alive = True, False

    def _to_save(self, checkpoint: Checkpoint) -> tuple[object, ...]:
        return self.local.spec, self.local.deleting, checkpoint

    def _place(self, local: LocalAllocation) -> LocalAllocation:
        """``local`` with its disks where they are now. Forgets a relocation that the server knows."""
        relocation = self.checkpoint.relocation
        if relocation is not None and local.spec.storage is None and relocation.state in ("clear", "over"):
            sent = list_disks(local.spec).get(relocation.disk, ("", ""))
            if relocation.state == "over" or sent == (relocation.pool, relocation.pool_id):
                self.checkpoint = replace(self.checkpoint, relocation=None)
        return place_disks(local, self.checkpoint.relocation)


def has_begun(state: AllocationState) -> bool:
    """Whether its lease has begun, or it has none that could."""
    spec, checkpoint = state.local.spec, state.checkpoint
    return spec.lease is None or spec.role != "active" or checkpoint.begun or bool(checkpoint.arrived_by)


async def keep_snapshot(state: AllocationState, taking: Taking | None, done: SnapshotReport | None = None) -> None:
    """Save how far a snapshot of it is, and what became of one that is over. Raises CheckpointFailed."""
    taken = state.checkpoint.taken if done is None else [*state.checkpoint.taken, done]
    state.checkpoint = replace(state.checkpoint, taking=taking, taken=taken)
    await state.save()


async def keep_restored(state: AllocationState, origin: AllocatedOrigin, kept: SnapshotReport | None) -> None:
    """Save that its disks are those of ``origin``, and what became of the snapshot that it keeps. Raises CheckpointFailed."""
    uid = kept.uid if kept is not None else ""
    taken = [one for one in state.checkpoint.taken if one.uid != uid] + ([kept] if kept is not None else [])
    begun = state.checkpoint.begun_from if state.local.spec.desired == "run" else origin.generation  # it boots later
    state.checkpoint = replace(
        state.checkpoint,
        run="down",
        ended="",
        answered=False,
        restoring=None,
        restored=origin.generation,
        begun_from=begun,
        taken=taken,
    )
    await state.save()


def find_leftover(left: Iterable[AllocatedNic], old: AllocationSpec, new: AllocationSpec) -> list[AllocatedNic]:
    """NICs that the spec had and lost."""
    kept = {nic.uid for nic in new.nics}
    return list({nic.uid: nic for nic in [*left, *old.nics] if nic.uid not in kept}.values())
