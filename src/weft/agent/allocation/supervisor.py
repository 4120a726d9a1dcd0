"""The allocations of this node, with a worker each: first from the checkpoints, then as the server lists and deletes them.

An allocation that the server's list lacks, or has as lost, is kept as an orphan until it is listed again, or the server reports
that it was placed elsewhere. Woken by the agent's watch of allocations.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from weft.agent.allocation.executor import StepExecutor
from weft.agent.allocation.fencing import relate
from weft.agent.allocation.orphans import recover_guests, review_unexplained
from weft.agent.server.reporter import HEARTBEAT_SECONDS, Reporter
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointFailed, CheckpointStore
from weft.agent.state.departure import recall_departed
from weft.agent.state.table import AllocationTable
from weft.agent.tasks import Tasks
from weft.agent.watches import Change, Deleted, Put
from weft.contracts.clock import Clock
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_lost
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

if TYPE_CHECKING:  # loaded with the first allocation
    from weft.agent.allocation.worker import AllocationWorker

RUNTIME_RETRY_SECONDS = 1.0
BREATH_SECONDS = 0.02  # changes of guests come in bursts
LISTEN_SECONDS = 8.0  # for the server's list, before guests that don't run are started from their checkpoints

log = logging.getLogger("weft.agent")


class Allocations:
    """Keeps ``table`` up to date, and a worker for each of its allocations among ``tasks``."""

    def __init__(
        self,
        table: AllocationTable,
        store: CheckpointStore,
        executor: StepExecutor,
        reporter: Reporter,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._table, self._store, self._executor = table, store, executor
        self._reporter, self._clock, self._tasks = reporter, clock, tasks
        self._workers: dict[str, AllocationWorker] = {}  # by allocation uid, as the table's states
        self._care: dict[str, asyncio.Task[None]] = {}
        self.epoch = ""  # the server's history of the last list

    async def take_up(self) -> int:
        """Load the checkpoints, and find the guests that are here; the number of running ones."""
        self.epoch = await asyncio.to_thread(self._store.load_epoch)
        await asyncio.to_thread(self._store.drop_departures)
        for envelope, checkpoint in await asyncio.to_thread(self._store.load):
            state = self._add(envelope, checkpoint).state
            state.taken_up = state.unconfirmed = True
        return await recover_guests(self._table, self._executor.runtimes)

    def begin(self) -> None:
        """Start the workers of the loaded allocations."""
        self.relate()
        for uid, worker in self._workers.items():
            self._care[uid] = self._tasks.spawn(worker.care())

    async def listen(self) -> None:
        """A guest that ended without an agent restarts once the server has confirmed it, or if no server answers. A server that
        answers reports is waited for: its list will come."""
        waits_until = self._clock.elapsed() + LISTEN_SECONDS
        while any(state.unconfirmed for state in self._table):
            answers_until = self._reporter.answered_at + HEARTBEAT_SECONDS + LISTEN_SECONDS
            left = max(waits_until, answers_until) - self._clock.elapsed()
            if left <= 0:
                self._confirm()
            else:
                await self._clock.sleep(left)

    async def follow_runtimes(self) -> None:
        """Look again whenever guests have changed, for ever."""
        while True:
            try:
                await self._executor.runtimes.changed()
            except WeftError as problem:
                log.warning("runtime: %s", problem.message)
                await self._clock.sleep(RUNTIME_RETRY_SECONDS)
            self.wake()
            if await review_unexplained(self._table, self._executor.runtimes):
                self._reporter.wake()  # a guest without an allocation has gone
            await self._clock.sleep(BREATH_SECONDS)

    def put(self, change: Change) -> bool:
        """Apply a change of the server's; whether networks may be affected."""
        if isinstance(change, Put):
            if not self._put(change.envelope):
                return False
        elif isinstance(change, Deleted):
            self._lose(change.last)
        else:
            for state in [state for state in self._table if state.local.name not in change.names]:
                self._miss(self._workers[state.local.uid])
            if change.epoch != self.epoch:
                self.epoch = change.epoch
                self._tasks.spawn(self._keep_epoch(change.epoch))
            self._confirm()
            self._reporter.repeat()
        self.relate()
        return True

    def supersede(self, uids: Iterable[str], stale_volumes: Iterable[str]) -> None:
        """End these: a later incarnation was placed elsewhere, or they were deleted. A root disk that no migration took along is
        kept as a volume."""
        found = [state for state in self._table.orphans() if state.local.uid in {*uids} and not state.replaced]
        for state in found:
            state.note_replaced(stale_volumes)
            self._reporter.put_event(
                state.local.spec.workload,
                "Warning",
                "Superseded",
                "removed from this node: it was placed elsewhere or deleted in the meantime; a root disk that didn't migrate "
                "with it is kept as a volume: weft volume list --orphans",
            )
        if found:
            self.relate()

    def relate(self) -> None:
        """Relate the allocations to each other, and drop those that are released and deleted."""
        for worker in list(self._workers.values()):
            if worker.state.released and worker.state.deleted:
                self._drop(worker)
        relate(self._table)
        if self._table.functions is not None:
            self._table.functions.on_capacity()
        if self._table.orphans():
            self._reporter.wake()  # their guests' location may be known by now

    def wake(self) -> None:
        """Any guest may have changed."""
        for state in self._table:
            state.wake()

    async def save_orphans(self) -> None:
        """Save the orphan marks before they are reported: an agent that restarts without a server would start the orphans'
        guests."""
        tried: set[AllocationState] = set()
        while found := [state for state in self._table.orphans() if state not in tried]:
            tried.update(found)
            for state in found:
                try:
                    await state.save()
                except CheckpointFailed as problem:
                    log.warning("%s: %s", state.local.what, problem.message)  # a full disk must not stop the reports

    def _confirm(self) -> None:
        for state in self._table:
            state.confirm()

    async def _keep_epoch(self, epoch: str) -> None:
        """Save that this history was read, after all orphan marks: a restarted agent reports it to the server, which places
        nothing here before."""
        try:
            for state in self._table:
                await state.save()
            if epoch == self.epoch:
                await asyncio.to_thread(self._store.save_epoch, epoch)
        except CheckpointFailed as problem:
            log.warning("%s", problem.message)  # it is read again after a restart

    def _add(self, envelope: Envelope, checkpoint: Checkpoint) -> AllocationWorker:
        state = self._table.states[envelope.uid] = AllocationState(envelope, checkpoint, self._store)
        late = importlib.import_module("weft.agent.allocation.worker")  # see above
        worker: AllocationWorker = late.AllocationWorker(state, self._executor, self._clock, self._reporter, self)
        self._workers[envelope.uid] = worker
        return worker

    def _put(self, envelope: Envelope) -> bool:
        worker = self._workers.get(envelope.uid)
        is_read = worker is not None and worker.state.has_read(envelope)
        spec = worker.state.local.spec if worker is not None and is_read else decode_part(envelope.spec, AllocationSpec)
        if spec.role == "reserved":
            return False  # it only reserves capacity, in the store
        lost = is_lost(spec) and envelope.deleting_since is None  # of one that is deleted, nothing is kept
        if worker is not None and not (worker.state.released and envelope.deleting_since is None and not lost):
            state = worker.state
            was_gone = not lost and (state.replaced or state.deleted)
            if not lost:
                state.replaced = state.deleted = False  # the server lists it again, and waits for its release
            is_news = worker.update(envelope)
            self._reporter.compare(envelope.name, state.local.report)
            return is_news or was_gone
        if worker is not None:
            self._drop(worker)  # released here, but a restored server lists it again
        report = decode_part(envelope.report, AllocationReport)
        checkpoint = Checkpoint(restart_generation=report.restart_generation, restarts=report.restarts, orphan=lost)
        checkpoint = recall_departed(checkpoint, self._store.load_departure(short_id(envelope.uid)))
        self._care[envelope.uid] = self._tasks.spawn(self._add(envelope, checkpoint).care())
        return True

    def _lose(self, last: Envelope) -> None:
        """The server deleted it: that ends its guest only if it was being deleted."""
        worker = self._workers.get(last.uid)
        if worker is None:
            return
        if worker.state.released:
            self._drop(worker)
        elif last.deleting_since is not None:
            worker.state.deleted = True
            worker.update(last)
        else:
            self._miss(worker)

    def _miss(self, worker: AllocationWorker) -> None:
        """It is missing from the list, which ends nothing: its guest and disks stay, and a deletion continues."""
        state = worker.state
        if state.released or (not state.checkpoint.made and state.local.id not in self._table.found):
            self._drop(worker)
        elif not state.local.deleting and not state.checkpoint.orphan:
            state.mark_orphan()
            message = f"the server no longer knows {state.local.what}; it is kept"
            self._reporter.put_event(state.local.spec.workload, "Warning", "Orphaned", message)

    def _drop(self, worker: AllocationWorker) -> None:
        state = worker.state
        uid = state.local.uid
        self._workers.pop(uid, None)
        self._table.states.pop(uid, None)
        if state.released:
            self._table.found.pop(state.local.id, None)  # else it would count as unexplained
        self._reporter.drop(state.local.name)
        task = self._care.pop(uid, None)
        if task is not None:
            task.cancel()
        if not state.checkpoint.made:
            self._store.remove(state.local.id)  # left by a deletion that was repeated after its end
