"""Places workloads: takes those that want a place in batches, has them decided on (decisions.py), and commits.

Reads workloads, nodes, allocations, images, volumes, networks, endpoints; writes allocations, endpoints, decisions, the records
of run times, and the conditions Placed and Addressed. Woken by its intake, which sees every change that could let a workload be
placed. All its state can be read again: a new Scheduler over the same cache continues where another was killed.
"""

from __future__ import annotations

from functools import partial

from weft.contracts.store import MAX_WRITES
from weft.informer.cache import whole
from weft.informer.commit import Commit
from weft.informer.leader_lease import LeaderLease
from weft.informer.trace.commits import Work, work
from weft.informer.view import View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.lease import ELSEWHERE_SECONDS
from weft.kinds.fields.strategy import DEFAULT_STRATEGY
from weft.scheduler.allocation.bind import StatusUpdate, no_status_update
from weft.scheduler.batches import MOST, Batch, PendingBatches
from weft.scheduler.constraint.status import plan_constraint_status
from weft.scheduler.decisions import Decisions
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import Demand
from weft.scheduler.intake import KINDS, WATCHED, Intake
from weft.scheduler.node.usage import NodeUsage, find_whereabouts, ranks_by_usage
from weft.scheduler.own_policies.registry import OwnPolicies, find_fallback
from weft.scheduler.own_policies.status import plan_policy_status
from weft.scheduler.policies import Policies
from weft.scheduler.table.snapshot import Snapshot, asks_of

BATCH = 3 * (MAX_WRITES // 3)  # a placement has three writes
CHECK_WORKERS_EVERY_SECONDS = 0.05  # whether custom policies that are being started are ready
REWRITE_STATUS_SECONDS = 0.1
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0


class Scheduler:
    """``run`` decides while ``leadership`` is held; ``update_status`` completes the status of a workload that gets a place. A VM
    that was suspended for another waits ``elsewhere_seconds`` for its own node before it may resume on another one."""

    def __init__(
        self,
        leadership: LeaderLease,
        strategy: str = DEFAULT_STRATEGY,
        *,
        seed: int = 0,
        update_status: StatusUpdate = no_status_update,
        elsewhere_seconds: float = ELSEWHERE_SECONDS,
    ) -> None:
        self.snapshot = Snapshot()
        self._leadership = leadership
        self._clock = leadership.clock
        self._view: View = leadership.cache.view
        self._strategy = strategy
        self._own = OwnPolicies(find_fallback(strategy))
        self._engine = Engine(
            self.snapshot,
            seed=seed,
            policies=Policies(self._own.find),
            demand=Demand(lambda: asks_of(self.snapshot), learns=True),
        )
        self.intake = Intake(leadership, self._engine, self._own)
        self._usage = NodeUsage(leadership.store, leadership.clock)
        self.snapshot.talkers.locate = partial(find_whereabouts, self._view)
        self._pending = PendingBatches(leadership)
        self._decisions = Decisions(
            leadership,
            self.intake,
            self._engine,
            self._own,
            self._pending,
            strategy=strategy,
            update_status=update_status,
            elsewhere_seconds=elsewhere_seconds,
        )
        self._pause_seconds = 0.0
        self._rewrite_at = float("inf")

    async def run(self) -> None:
        """Raises LeadershipLost when the lease ends."""
        work.set(Work("scheduler"))
        unsubscribe = self._leadership.cache.subscribe(self.intake.notice, WATCHED)
        try:
            self.intake.notice(whole(self._view, KINDS))
            self.intake.learned.load(self._view)
            self._engine.last = self._find_last()
            while True:
                if self.intake.questions:
                    await self._answer()
                if self.intake.migrations.wait(self._clock.elapsed()) == 0.0:
                    await self._place_migrations()
                if self.intake.reservations.wait(self._clock.now()) == 0.0:
                    await self._place_reservations()
                await self._write_status()
                if self.intake.learned.wait(self._clock.elapsed()) == 0.0:
                    failed = await self._leadership.perform(self.intake.learned.plan(self._view, self._clock.now()))
                    if failed:
                        self.intake.learned.retry(failed, self._clock.elapsed())
                if self._decisions.starting and not self._own.starting():
                    self._decisions.starting = self.intake.offer_keys(self._decisions.starting)
                if self._decisions.budget.wait(self._clock.elapsed()) == 0.0:
                    self._decisions.budget.owed = self.intake.offer_keys(self._decisions.budget.owed)
                if self.intake.pass_due:
                    self._decisions.leases.run(self._clock.now())
                if not self.intake.queue.ready and self._pending:
                    await self._land(0)
                elif not self.intake.queue.ready:
                    await self.intake.wake.wait(self._patience())
                else:
                    await self._decide_batch()
                    await self._clock.sleep(self._pause_seconds)  # mostly 0: other tasks get their turn
        finally:
            unsubscribe()
            self._own.close()
            await self._pending.close()

    async def _write_status(self) -> None:
        """Write the status of Constraints and placement policies where it is due. Refused writes are tried again a little
        later: the write that came in between may have changed nothing that makes them due."""
        elapsed, now = self._clock.elapsed(), self._clock.now()
        again = elapsed >= self._rewrite_at
        commits: list[Commit] = []
        if self.intake.take_counts_due() or again:
            commits += plan_constraint_status(self._view, self.snapshot)
        if self._own.take_news() or again:
            commits += plan_policy_status(self._view, self._own, now)
        if commits or again:
            refused = await self._leadership.perform(commits)
            self._rewrite_at = elapsed + REWRITE_STATUS_SECONDS if refused else float("inf")

    async def _answer(self) -> None:
        """Answer all open questions. An answer is refused if its question was changed or deleted, which is noticed."""
        await self._usage.refresh(self._view, self.snapshot)
        now = self._clock.now()
        await self._leadership.perform(self.intake.questions.plan(self._view, self._engine, self._strategy, now))

    async def _refresh_usage(self) -> None:
        """Read the usage of nodes, if a placement policy ranks by it."""
        if ranks_by_usage(self._view, self._strategy):
            await self._usage.refresh(self._view, self.snapshot)

    async def _place_migrations(self) -> None:
        """Give Migrations their targets."""
        await self._refresh_usage()
        migrations, clock = self.intake.migrations, self._clock
        silent = self.intake.refresh_silent()
        commits = migrations.plan(self._view, self._engine, self._strategy, silent, clock.now(), clock.elapsed())
        await self._leadership.perform(commits)
        for key in migrations.assumed:
            self.intake.count(key, self._view.get(key))
        migrations.assumed.clear()
        self.intake.wake_classes()

    async def _place_reservations(self) -> None:
        """Give Reservations their slots, and take those back that are over."""
        reservations, silent, now = self.intake.reservations, self.intake.refresh_silent(), self._clock.now()
        for failed in await self._leadership.perform(reservations.plan(self._view, self._engine, silent, now)):
            reservations.retry(failed.key)
        for key in reservations.assumed:
            self.intake.count(key, self._view.get(key))
        reservations.assumed.clear()
        self.intake.wake_classes()

    async def _decide_batch(self) -> None:
        await self._refresh_usage()
        keys = self.intake.take(BATCH)
        has_gang = any(
            (workload := self._view.get(key)) is not None and spec_of(workload).gang is not None for key in keys
        )
        if has_gang or self._pending.holds(keys):  # the others of the gang aren't in the view yet
            await self._land(0)
        commits = self._decisions.plan(keys)
        if commits:
            await self._pending.send(self._decisions.batch, commits)
        else:
            self._forget(self._decisions.batch)
        await self._land(0 if has_gang else MOST - 1)

    async def _land(self, most: int) -> None:
        """Wait until at most so many batches are pending."""
        while len(self._pending) > most:
            landed = await self._pending.land()
            self._forget(landed.batch)
            self.intake.offer_keys({commit.key for commit in landed.failed})
            self.intake.wake_classes()
            self._pause_seconds = (
                min(max(2 * self._pause_seconds, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                if landed.in_vain
                else 0.0
            )

    def _forget(self, batch: Batch) -> None:
        """Count what is in the view: stored allocations are there by now, the others give their capacity back."""
        for key in batch.assumed:
            if self._view.get(key) is None:
                self.intake.count(key, None)
        for key in batch.resized:
            self.intake.count(key, self._view.get(key))
        self.intake.addresses.give_back(self._view, batch.reserved)

    def _patience(self) -> float | None:
        """Seconds until the next run even if nothing changes; None: never."""
        elapsed = self._clock.elapsed()
        waits = [self.intake.refresh(), self._decisions.budget.wait(elapsed), self.intake.migrations.wait(elapsed)]
        waits += [self.intake.reservations.wait(self._clock.now()), self.intake.learned.wait(elapsed)]
        if self._rewrite_at < float("inf"):
            waits.append(max(0.0, self._rewrite_at - elapsed))
        if self._own.starting() or self._decisions.starting:
            waits.append(CHECK_WORKERS_EVERY_SECONDS)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _find_last(self) -> str | None:
        newest = max(self._view.of_kind("allocation").values(), key=lambda i: i.envelope.created_at, default=None)
        return None if newest is None else newest.spec(AllocationSpec).node
