"""What is known of one allocation, durably: what the server said of it last, and what this node did about it.

Reads and writes its copy in the agent's folder. Called by its worker before and after each step.
"""

from __future__ import annotations

import asyncio
import logging

from msgspec.structs import replace

from weft.agent.allocation.transitions import find_leftover, locate_guest
from weft.agent.state.allocation import (
    AllocationState,
    DiskRelocation,
    LocalAllocation,
    MigrationState,
    Run,
    place_disks,
    read_allocation,
)
from weft.agent.state.checkpoint import Checkpoint, CheckpointFailed, CheckpointStore
from weft.agent.state.departure import find_bygone, recall_part
from weft.kinds.allocation import list_disks
from weft.kinds.parts.orphan import GuestLocation
from weft.objects.envelope import Envelope

log = logging.getLogger("weft.agent")


class AllocationRecord:
    """``wanted`` and ``memory`` as of now; ``released`` once all of it has gone from the node, and nothing is written any more."""

    def __init__(self, copy: Checkpoint, copies: CheckpointStore) -> None:
        self.memory = copy.memory
        wanted = read_allocation(copy.allocation)
        self._spec = wanted.spec  # as the server said it, wherever its disks are by now
        self.wanted = place_disks(wanted, copy.memory.store)
        if self.memory.part is None:
            self.memory = replace(self.memory, part=recall_part(self.memory, self.wanted.spec))
        self.envelope = copy.allocation
        self.released = False
        self._copies = copies
        self._saved: tuple[object, ...] | None = None
        self._saving = asyncio.Lock()

    def update(self, envelope: Envelope) -> bool:
        """The server listed the allocation, or changed it: whether there may be something else to do now."""
        told = read_allocation(envelope, self._spec if self.has_read(envelope) else None)
        wanted, old = self._place(told), self.wanted
        before = (old.spec, old.deleting, self.memory.orphan)
        self.envelope, self.wanted, self._spec = envelope, wanted, told.spec
        leftover = find_leftover(self.memory.leftover, old.spec, wanted.spec)
        part = self.memory.part or recall_part(self.memory, wanted.spec)
        self.memory = replace(self.memory, orphan=False, leftover=leftover, part=part)
        return before != (wanted.spec, wanted.deleting, False)

    def has_read(self, envelope: Envelope) -> bool:
        """Whether the spec in it is the one that was read last: most of what a node hears is what it has reported itself."""
        return self.envelope.spec == envelope.spec

    @property
    def standing(self) -> GuestLocation:
        """Where its guest is, for all that this node knows."""
        return locate_guest(self.memory, self.wanted.spec)

    @property
    def last_move(self) -> str:
        """The key of the move that it was a side of last, as far as this node remembers."""
        return self.memory.part.key if self.memory.part is not None else self.memory.took

    async def keep_store(self, store: DiskRelocation) -> None:
        """How far the move of a disk to another pool is. Raises CheckpointFailed."""
        self.memory = replace(self.memory, store=store)
        await self.save()
        self.wanted = place_disks(self.wanted, store)

    async def keep_part(self, part: MigrationState) -> None:
        """What this node did in the allocation's move. Raises CheckpointFailed."""
        move = self.wanted.spec.move
        runs = part.taken and part.side == "target" and move is not None and move.mode == "live"
        run: Run = "up" if runs else self.memory.run
        self.memory = replace(self.memory, part=part, run=run)
        await self.save()

    async def save(self, memory: AllocationState | None = None) -> None:
        """Have the copy say ``memory``, or what that is once nobody else writes. Raises CheckpointFailed."""
        if not self._saving.locked() and (self.wanted.spec, self.wanted.deleting, memory or self.memory) == self._saved:
            return
        async with self._saving:
            memory = memory or self.memory
            if self.released:
                return
            state = (self.wanted.spec, self.wanted.deleting, memory)
            if state != self._saved and (memory.made or memory.run != "new"):
                await asyncio.to_thread(self._copies.save, self.wanted.id, Checkpoint(self.envelope, memory))
                self._saved = state

    async def note(self, memory: AllocationState) -> None:
        """Save what the next look would find out anyway, or will save then."""
        try:
            await self.save(memory)
        except CheckpointFailed as problem:
            log.warning("%s: %s", self.wanted.what, problem.message)

    async def note_departure(self) -> None:
        """What has gone from here for good, or came by a move, is remembered when all else is forgotten: an older store may ask."""
        part = find_bygone(self.memory)
        if part is None:
            return
        try:
            await asyncio.to_thread(self._copies.save_departure, self.wanted.id, part)
        except CheckpointFailed as problem:
            log.warning("%s: %s", self.wanted.what, problem.message)

    def release(self) -> None:
        """All of it has gone from the node; so does the copy."""
        self._copies.remove(self.wanted.id)
        self.released = True

    def _place(self, wanted: LocalAllocation) -> LocalAllocation:
        """With its disks where they are. What the server knows of by now needn't be remembered."""
        store = self.memory.store
        if store is not None and wanted.spec.storage is None and store.state in ("clear", "over"):
            told = list_disks(wanted.spec).get(store.disk, ("", ""))
            if store.state == "over" or told == (store.pool, store.pool_id):
                self.memory = replace(self.memory, store=None)
        return place_disks(wanted, self.memory.store)
