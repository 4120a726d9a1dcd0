"""Cares for one allocation: inspects its guest, plans, performs and reports. Each worker is a task, so none waits for another.

Saves the checkpoint before acting. Woken by a changed allocation, by the runtime, and when a pause is over.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from msgspec.structs import replace

from weft.agent.allocation import plan as plans
from weft.agent.allocation.executor import StepExecutor
from weft.agent.allocation.facts import Plan, PlanInput, is_alive
from weft.agent.allocation.lifecycle import Lifecycle
from weft.agent.allocation.plan import find_rest
from weft.agent.allocation.progress import StartProgress
from weft.agent.allocation.report import failure_of, make_report, state_of
from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment, Work
from weft.agent.allocation.steps.registry import STEPS
from weft.agent.allocation.transitions import (
    after_pull,
    after_refusal,
    before_step,
    choose_migration,
    find_digest,
    merge_changes,
)
from weft.agent.migration.disk_relocation import begin_relocation
from weft.agent.server.reporter import Reporter
from weft.agent.snapshot.turns import list_ids
from weft.agent.state.allocation import DiskRelocation, StepFailure
from weft.agent.state.allocation_state import AllocationState, has_begun
from weft.agent.state.lease import Stage, closes_ports, find_stage, is_soon, postpone
from weft.agent.state.snapshots import find_beginning, find_snapshots
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocationReport, needs_guard
from weft.objects.envelope import Envelope
from weft.objects.errors import WeftError
from weft.protocol.report import EventType

log = logging.getLogger("weft.agent")
REVIEW_SECONDS = 10.0  # even if nothing reports a change
ASK_SECONDS = 45.0  # its server finds its link, asks the other cluster, and has the VM stopped


class Relations(Protocol):
    """All the allocations of a node."""

    def relate(self) -> None:
        """Relate them anew: one of them came up, ended or was released."""


class AllocationWorker:
    def __init__(
        self, state: AllocationState, executor: StepExecutor, clock: Clock, reporter: Reporter, relations: Relations
    ) -> None:
        self.state = state
        self.clock = clock
        self._executor, self._reporter, self._relations = executor, reporter, relations
        self._progress = StartProgress(clock, state.local.report.steps)
        self._lifecycle = Lifecycle(state, executor.runtimes, clock, reporter)
        # The facts when nothing was due, now or later: the same facts again need no plan and no report.
        self._settled: PlanInput | None = None
        self._shown = AllocationReport()
        self._asks_until: float | None = None  # 0: that time is over
        self._stage: Stage = "active"  # at the last turn
        self._postponed = False  # its lease would have begun, or its preparation, but for the server's silence
        self._closed = closes_ports(state.local.spec.lease, state.guest, clock.now(), begun=has_begun(state))
        self._network: asyncio.Task[str] | None = None  # runs beside the steps for disks

    def update(self, envelope: Envelope) -> bool:
        """The server listed or changed the allocation; whether the plan may change."""
        is_news = self.state.update(envelope)
        self._executor.migrations.put(self.state.local)
        self._progress.adopt(self.state.local.report.steps)
        if is_news:
            self.state.replan()
        return is_news

    def _read(self, guest: GuestFacts) -> PlanInput:
        """All facts now."""
        state, runtimes, migrations = self.state, self._executor.runtimes, self._executor.migrations
        return PlanInput(
            local=state.local,
            checkpoint=state.checkpoint,
            guest=guest,
            health=state.health,
            set_up=state.set_up,
            readiness=state.readiness,
            now=self.clock.elapsed(),
            failure=state.failure,
            superseded=state.superseded,
            stale_volumes=state.stale_volumes,
            blocked=state.blocked,
            unheld=state.unheld if needs_guard(state.local.spec) else "",
            unconfirmed=state.unconfirmed,
            asks_until=self._find_asking(),
            can_suspend=runtimes.can_suspend(state.local),
            can_adjust=runtimes.can_adjust(state.local),
            restart_at=state.restart_at,
            migrating=migrations.is_leading(state.local, state.checkpoint.migration),
            relocating=migrations.is_relocating(state.local.uid),
            unwell=state.unwell,
            stage=self._find_stage(),
            postponed=self._postponed,
            in_contact=not self._postponed or self._reporter.contact.is_in_contact,
            soon=is_soon(state.local.spec.lease, self.clock.now()),
            fetched=state.fetched,
            prepared=state.prepared,
            snapshot_at=state.snapshot_at,
            held_until=state.held_until,
            can_hold=runtimes.find(state.local) in runtimes.holding,
        )

    def _find_asking(self) -> float:
        """The time until which a guest with a replica isn't booted after this agent's start: its server may have been away, too. It
        begins again while the server is silent, since nobody asks then."""
        state, now = self.state, self.clock.elapsed()
        if not (state.taken_up and state.local.spec.replicated) or state.unconfirmed:
            return 0.0
        if self._asks_until is None or (self._asks_until and not self._reporter.contact.is_in_contact):
            self._asks_until = now + ASK_SECONDS
        elif self._asks_until <= now:
            self._asks_until = 0.0
        return self._asks_until

    def _find_stage(self) -> Stage:
        """The stage of its lease, which begins only while the server hears this node."""
        state, checkpoint = self.state, self.state.checkpoint
        stage = find_stage(state.local.spec.lease, self.clock.now())[0]
        self._postponed = False
        if has_begun(state) or stage not in ("ahead", "imminent", "active"):
            return stage
        if self._reporter.contact.confirms(state.local.name):
            if stage == "active":
                state.checkpoint = replace(checkpoint, begun=True)
            return stage
        self._postponed = True
        return postpone(stage, prepares=checkpoint.run != "new" or state.prepared)

    async def care(self) -> None:
        """Do what is due, until everything of the allocation is gone from the node."""
        try:
            await self._care()
        finally:
            self._lifecycle.close()

    async def _care(self) -> None:
        state = self.state
        while not state.released:
            state.woken.clear()
            state.changed.clear()
            try:
                review_at = await self._turn()
            except Exception as problem:  # a defect in one step must not end the worker
                log.exception("%s", state.local.what)
                review_at = self._fail(problem).retry_at
            if not state.released:
                pause = REVIEW_SECONDS if review_at is None else min(REVIEW_SECONDS, review_at - self.clock.elapsed())
                pause = min(pause, find_stage(state.local.spec.lease, self.clock.now())[1])
                await wait_for_event(self.clock, state.woken, pause)

    async def _turn(self) -> float | None:
        """Inspect once and act once; when to do so again at the latest (elapsed seconds)."""
        if await self._lifecycle.inspect():
            self._relations.relate()
        state = self.state
        assert state.guest is not None
        stage = self._find_stage()
        if self._stage == "waits" != stage:
            state.failure = None  # of a fetch ahead: what is due now doesn't wait for its pause
        self._stage = stage
        facts = self._read(state.guest)
        closed = closes_ports(state.local.spec.lease, state.guest, self.clock.now(), begun=has_begun(state))
        if closed != self._closed:
            self._closed = closed
            self._executor.wake_network()
        if self._settled is not None and facts == replace(self._settled, now=facts.now):
            self._reporter.put(state.local.name, self._shown)
            await state.note(state.checkpoint)  # it may not have been saved the last time
            return None
        self._settled = None
        plan = plans.plan_allocation(facts)
        self._progress.rest()
        if not plan.steps:
            self._show(plan)
            if plan.review_at is None and not facts.migrating and not facts.relocating:  # those report their progress
                self._settled = facts
                self._executor.traces.settle(state, plan.state)
            await state.note(state.checkpoint)
            return plan.review_at
        await self._carry_out(plan, state.guest)
        return self.clock.elapsed()

    async def _carry_out(self, plan: Plan, guest: GuestFacts) -> None:
        alive, adjusting = is_alive(guest), StepName.ADJUST in plan.steps
        state = self.state
        work = Work(
            state=state,
            local=state.local,
            leftover=state.checkpoint.leftover,
            migration=choose_migration(state.checkpoint, state.local.spec),
            relocation=self._choose_relocation(plan),
            digest=find_digest(state.checkpoint, state.local.spec, runs=alive),
            origin=find_beginning(state.local.spec, state.checkpoint),
            adjusting=adjusting,
            attached=list(guest.shape.disks) if alive and adjusting and guest.shape is not None else [],
        )
        self._progress.quiet = adjusting
        alone = bool(find_snapshots(state.local, state.checkpoint))
        turn = self._executor.turns.steps(list_ids(state.local).values(), alone=alone)
        try:
            async with turn:
                await self._take_steps(plan, work)
            if self._network is not None:  # letting it end is cheaper than repeating it
                await asyncio.gather(self._network, return_exceptions=True)
        finally:
            self._end_network()

    async def _take_steps(self, plan: Plan, work: Work) -> None:
        state = self.state
        for step in plan.steps:
            if state.changed.is_set():
                return
            self._progress.begin(step)
            work.local = state.local
            try:
                await self._before(step, work)
                if step is StepName.DISK and StepName.NETWORK in plan.steps:
                    await self._begin_network(work)
                self._show(plan)
                detail = await self._perform(step, work, plan)
            except (WeftError, OSError) as problem:
                self._progress.fail(step)
                state.checkpoint = after_refusal(step, state.checkpoint, state.local.spec, self._fail(problem))
                await state.note(state.checkpoint)
                return
            if detail is None:
                return
            self._after(step, detail, work)
            self._progress.end(step, detail)  # shown by the next step or turn
        state.failure = None
        state.prepared = plan.steps[-1] is StepName.NETWORK
        state.fetched = state.fetched or plan.steps[-1] is StepName.FETCH
        if plan.steps[-1] is not StepName.START:  # the next turn inspects the started guest, and saves
            await state.note(state.checkpoint)

    async def _begin_network(self, work: Work) -> None:
        """Make the network while the disks are made: neither needs the other, and both wait for programs."""
        self._progress.begin(StepName.NETWORK)
        await self._before(StepName.NETWORK, work)
        self._network = asyncio.ensure_future(self._executor.perform(StepName.NETWORK, work, lambda detail: None))

    def _end_network(self) -> None:
        """Cancel a network step that still runs when the worker ends; the next worker repeats it."""
        network, self._network = self._network, None
        if network is not None:
            network.add_done_callback(lambda done: done.cancelled() or done.exception())
            network.cancel()

    async def _perform(self, step: StepName, work: Work, plan: Plan) -> str | None:
        """The step's detail for people; None if it was cancelled because the spec has changed."""

        def show(detail: str) -> None:
            self._progress.show(step, detail)
            self._show(plan)

        if step is StepName.NETWORK and self._network is not None:
            return await self._network
        performing = self._executor.perform(step, work, show)
        if not STEPS[step].gives_way:
            return await performing
        fetching, changed = asyncio.ensure_future(performing), None
        try:
            await self.clock.sleep(0.0)  # a cached image is found at once
            if not fetching.done():
                changed = asyncio.ensure_future(self.state.changed.wait())  # a fetch may take minutes
                await asyncio.wait((fetching, changed), return_when=asyncio.FIRST_COMPLETED)
            return fetching.result() if fetching.done() else None
        finally:
            if changed is not None:
                changed.cancel()
            if not fetching.done():
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)

    async def _before(self, step: StepName, work: Work) -> None:
        """Save that ``step`` begins. Raises CheckpointFailed for a step that must be known after a power cut; removals go on even
        if the disk is full."""
        state, record, before = self.state, STEPS[step], self.state.checkpoint
        begun = before_step(step, before, self._moment(work))
        await (state.save if record.durable else state.note)(begun)
        state.checkpoint = merge_changes(before, begun, state.checkpoint)
        await record.on_begin(self, before)

    def _moment(self, work: Work, detail: str = "") -> Moment:
        state, spec = self.state, self.state.local.spec
        return Moment(
            spec,
            choose_migration(state.checkpoint, spec),
            work.relocation,
            alive=state.guest is not None and is_alive(state.guest),
            resumes=state.guest is not None and state.guest.state == "suspended",
            taken_over=spec.migration is not None and spec.migration.taken_over,
            detail=detail,
        )

    def _choose_relocation(self, plan: Plan) -> DiskRelocation | None:
        """The current relocation, or the one that would begin."""
        relocation, order = self.state.checkpoint.relocation, self.state.local.spec.storage
        if (
            StepName.RELOCATE not in plan.steps
            or order is None
            or (relocation is not None and relocation.key == order.key)
        ):
            return relocation
        return begin_relocation(self.state.local, order)

    def _after(self, step: StepName, detail: str, work: Work) -> None:
        state, record = self.state, STEPS[step]
        state.checkpoint = after_pull(state.checkpoint, state.local.spec, work)
        moment = self._moment(work, detail)
        state.checkpoint = record.after(state.checkpoint, moment)
        record.on_end(self, moment)

    # --- see Turn ----------------------------------------------------------------------------------------------------

    def put_event(self, type_: EventType, reason: str, message: str) -> None:
        self._reporter.put_event(self.state.local.spec.workload, type_, reason, message)

    def relate(self) -> None:
        self._relations.relate()

    def release(self) -> None:
        self.state.release()
        self._executor.traces.forget(self.state.local.name)
        self._reporter.put(self.state.local.name, self._report(Plan((), "released"), is_gone=True))
        self._relations.relate()

    def _fail(self, problem: Exception) -> StepFailure:
        before = self.state.failure
        failure = failure_of(problem, before, self.clock.elapsed())
        if before is None or (before.reason, before.message) != (failure.reason, failure.message):
            self.put_event("Warning", failure.reason, failure.message)
        self.state.failure = failure
        return failure

    def _show(self, plan: Plan) -> None:
        if not self.state.released:
            self._shown = self._report(plan)
            self._reporter.put(self.state.local.name, self._shown)

    def _report(self, plan: Plan, *, is_gone: bool = False) -> AllocationReport:
        phase = state_of(plan, self._progress.current)
        state, migrations = self.state, self._executor.migrations
        guest = state.guest
        assert guest is not None  # nothing is shown before the first inspection
        if phase == "running" or (guest.state == "running" and guest.ready):  # it may wait for its lease
            self._progress.arrive()
            self._executor.traces.arrive(state)
        facts = self._read(replace(guest, state="absent", exit_code=None) if is_gone else guest)
        report = migrations.report(state.local, state.checkpoint)
        if is_gone:
            plan = Plan((), plan.state, find_rest(facts))
        return make_report(facts, plan, phase, self._progress.list(), report)
