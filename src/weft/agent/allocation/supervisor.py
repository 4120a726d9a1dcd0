"""The allocations of this node, a worker each: taken up from the durable copies, then as the server lists and deletes them.

What no list of the server's holds is kept as an orphan until it is listed again, or superseded: placed elsewhere meanwhile, by the
server's word. Woken by the agent's feed of allocations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from weft.agent.allocation.fencing import relate
from weft.agent.allocation.orphans import FoundGuests
from weft.agent.allocation.worker import OnEvent, Worker
from weft.agent.server.reporter import HEARTBEAT_SECONDS, Reporter
from weft.agent.server.watch import Deleted, Put, Told
from weft.agent.state.allocation import AllocationState, DiskRelocation, LocalAllocation, MigrationState
from weft.agent.state.checkpoint import Checkpoint, CheckpointFailed, CheckpointStore
from weft.agent.state.departure import recall_bygone
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import short_id

LISTEN_SECONDS = 8.0  # for the server's list, before guests that don't run are started from memory

log = logging.getLogger("weft.agent")


class Allocations:
    """``make_worker`` makes the one that cares for a copy; ``spawn`` begins work beside all else; ``on_related`` hears when they
    may stand differently to each other, or take another room than before."""

    def __init__(
        self,
        copies: CheckpointStore,
        found: FoundGuests,
        reporter: Reporter,
        clock: Clock,
        make_worker: Callable[[Checkpoint], Worker],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_event: OnEvent,
        on_related: Callable[[], None],
    ) -> None:
        self._copies, self._found, self._reporter, self._clock = copies, found, reporter, clock
        self._make_worker, self._spawn, self._on_event, self._on_related = make_worker, spawn, on_event, on_related
        self._workers: dict[str, Worker] = {}  # by allocation uid
        self._care: dict[str, asyncio.Task[None]] = {}
        self._superseded: set[str] = set()  # those with a later incarnation elsewhere, by the server's word
        self._deleted: set[str] = set()  # those the server has no more, whose release is under way here
        self.epoch = ""  # the server's history that the last list was of

    async def take_up(self) -> None:
        """Know again what an agent before knew."""
        self.epoch = await asyncio.to_thread(self._copies.load_epoch)
        await asyncio.to_thread(self._copies.drop_departures)
        for copy in await asyncio.to_thread(self._copies.load):
            self._add(copy).unheard = True

    def begin(self) -> None:
        """Begin to care for what was taken up; the guests that were here are found by now."""
        self.relate()
        for worker in self.workers:
            self._care[worker.wanted.uid] = self._spawn(worker.care())

    async def listen(self) -> None:
        """A guest that ended while no agent was here is started again on the server's word; without a server, alone. One
        that answers will send its list too, however long that takes."""
        waits_until = self._clock.elapsed() + LISTEN_SECONDS
        while any(worker.unheard for worker in self.workers):
            answers_until = self._reporter.answered_at + HEARTBEAT_SECONDS + LISTEN_SECONDS
            left = max(waits_until, answers_until) - self._clock.elapsed()
            if left <= 0:
                self._hear()
            else:
                await self._clock.sleep(left)

    def put(self, told: Told) -> bool:
        """What the server says of them: whether anything else is to be here now."""
        if isinstance(told, Put):
            if not self._put(told.envelope):
                return False
        elif isinstance(told, Deleted):
            self._lose(told.last)
        else:
            for worker in [w for w in self.workers if w.wanted.name not in told.names]:
                self._miss(worker)
            if told.epoch != self.epoch:
                self.epoch = told.epoch
                self._spawn(self._keep_epoch(told.epoch))
            self._hear()
            self._reporter.repeat()
        self.relate()
        return True

    def supersede(self, uids: set[str], stale_volumes: set[str]) -> None:
        """A later incarnation was placed elsewhere, or they were deleted: these are ended, and their root disks removed."""
        uids = uids - self._superseded
        for worker in self.workers:
            if worker.wanted.uid in uids and worker.memory.orphan:
                self._superseded.add(worker.wanted.uid)
                worker.note_stale(stale_volumes)
                self._deleted.add(worker.wanted.uid)
                self._on_event(
                    worker.wanted,
                    "Warning",
                    "Superseded",
                    "removed from this node: it was placed elsewhere or deleted in the meantime",
                )
        if uids:
            self.relate()

    def relate(self) -> None:
        """See which incarnations of one workload meet on this node, and let go of what is released and deleted."""
        for worker in list(self.workers):
            if worker.released and worker.wanted.uid in self._deleted:
                self._drop(worker)
        relate(self.workers, self._superseded)
        self._on_related()
        if any(worker.memory.orphan for worker in self.workers):
            self._reporter.wake()  # where their guests are may be known by now

    def look(self, uid: str | None = None) -> None:
        """Something about the guest of this one, or of any, may have changed."""
        for worker in self.workers:
            if uid in (None, worker.wanted.uid):
                worker.look()

    async def keep_orphans(self) -> None:
        """Remember durably which are orphans, before the server is told: an agent that starts again without a server would
        start their guests."""
        tried: set[Worker] = set()
        while found := [worker for worker in self.workers if worker.memory.orphan and worker not in tried]:
            tried.update(found)
            for worker in found:
                try:
                    await worker.notes.save()
                except CheckpointFailed as problem:
                    log.warning("%s: %s", worker.wanted.what, problem.message)  # a full disk keeps no node silent

    async def keep_part(self, uid: str, part: MigrationState) -> None:
        """See ``Notes.keep_part``."""
        await self._workers[uid].notes.keep_part(part)
        self.look(uid)

    async def keep_store(self, uid: str, store: DiskRelocation) -> None:
        """See ``Notes.keep_store``."""
        await self._workers[uid].notes.keep_store(store)
        self.look(uid)

    def find(self, allocation: str) -> LocalAllocation | None:
        """The one of that name or uid if this node has it."""
        for worker in self.workers:
            if allocation in (worker.wanted.name, worker.wanted.uid):
                return worker.wanted
        return None

    @property
    def workers(self) -> Collection[Worker]:
        return self._workers.values()

    def guests(self) -> list[tuple[LocalAllocation, GuestFacts | None]]:
        """With their guests' facts by the last look."""
        return [(worker.wanted, worker.life.guest) for worker in self.workers]

    def unexplained(self) -> list[GuestFacts]:
        """The guests that were here at the start and are none of theirs."""
        return self._found.unexplained(self._ids())

    async def review_unexplained(self) -> None:
        """See whether one of those has gone."""
        if await self._found.review(self._ids()):
            self._reporter.wake()

    def _ids(self) -> set[str]:
        return {worker.wanted.id for worker in self.workers}

    def _hear(self) -> None:
        for worker in self.workers:
            worker.hear()

    async def _keep_epoch(self, epoch: str) -> None:
        """Remember durably that this history was heard, once all that it made orphans is remembered as such: an agent
        that starts again says so to the server, which places nothing until it has."""
        try:
            for worker in [*self.workers]:
                await worker.notes.save()
            if epoch == self.epoch:
                await asyncio.to_thread(self._copies.save_epoch, epoch)
        except CheckpointFailed as problem:
            log.warning("%s", problem.message)  # it is heard of anew after a start

    def _add(self, copy: Checkpoint) -> Worker:
        worker = self._workers[copy.allocation.uid] = self._make_worker(copy)
        return worker

    def _put(self, envelope: Envelope) -> bool:
        worker = self._workers.get(envelope.uid)
        is_read = worker is not None and worker.notes.has_read(envelope)
        if not is_read and decode_part(envelope.spec, AllocationSpec).role == "reserved":
            return False  # nothing is to be here yet: it only takes room in the server's books
        was_gone = envelope.uid in self._superseded or envelope.uid in self._deleted
        self._superseded.discard(envelope.uid)
        self._deleted.discard(envelope.uid)  # it has it again, and waits for the word that it is released
        if worker is not None and not (worker.released and envelope.deleting_since is None):
            is_news = worker.update(envelope)
            self._reporter.compare(envelope.name, worker.wanted.report)
            return is_news or was_gone
        if worker is not None:
            self._drop(worker)  # released here, but a restored server wishes it again
        report = decode_part(envelope.report, AllocationReport)
        memory = AllocationState(restart_generation=report.restart_generation, restarts=report.restarts)
        memory = recall_bygone(memory, self._copies.load_departure(short_id(envelope.uid)))
        self._care[envelope.uid] = self._spawn(self._add(Checkpoint(envelope, memory)).care())
        return True

    def _lose(self, last: Envelope) -> None:
        """The server deleted it: that is a wish only if it was being deleted."""
        worker = self._workers.get(last.uid)
        if worker is None:
            return
        if worker.released:
            self._drop(worker)
        elif last.deleting_since is not None:
            self._deleted.add(last.uid)
            worker.update(last)
        else:
            self._miss(worker)

    def _miss(self, worker: Worker) -> None:
        """It is in no list: that is no wish. What was made stays; a deletion under way goes on."""
        if worker.released or (not worker.memory.made and worker.wanted.id not in self._found):
            self._drop(worker)
        elif not worker.wanted.deleting and not worker.memory.orphan:
            worker.orphan()
            self._on_event(
                worker.wanted, "Warning", "Orphaned", f"the server no longer knows {worker.wanted.what}; it is kept"
            )

    def _drop(self, worker: Worker) -> None:
        self._workers.pop(worker.wanted.uid, None)
        if worker.released:
            self._found.forget(worker.wanted.id)
        self._deleted.discard(worker.wanted.uid)
        self._reporter.drop(worker.wanted.name)
        task = self._care.pop(worker.wanted.uid, None)
        if task is not None:
            task.cancel()
        if not worker.memory.made:
            self._copies.remove(worker.wanted.id)  # of a deletion that was begun again after its end
