"""Cares for one allocation: looks, decides with ``plan``, performs, tells; a task each, so none waits for another.

Reads the allocation as the feed brings it and the guest's facts; writes its durable copy before acting. Woken by a
changed allocation, by the runtime, and when a pause is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from weft.agent.allocation import plan as plans
from weft.agent.allocation.executor import StepExecutor
from weft.agent.allocation.lifecycle import Lifecycle
from weft.agent.allocation.plan import BRING_UP, Plan, Step
from weft.agent.allocation.progress import StartProgress
from weft.agent.allocation.report import failure_of, make_report, state_of
from weft.agent.allocation.state import AllocationRecord
from weft.agent.allocation.transitions import (
    after_pull,
    after_refusal,
    after_step,
    before_step,
    choose_part,
    find_digest,
    merge_heard,
    starts_again,
)
from weft.agent.state.allocation import AllocationState, DiskRelocation, LocalAllocation, PlanInput, StepFailure
from weft.agent.state.checkpoint import Checkpoint, CheckpointStore
from weft.agent.volume.relocation import begin_store
from weft.agent.workload.health import Health
from weft.agent.workload.vm import Prepared
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocationReport
from weft.objects.envelope import Envelope
from weft.objects.errors import WeftError
from weft.protocol.report import EventType

log = logging.getLogger("weft.agent")
LOOK_SECONDS = 10.0  # even if nobody says that anything changed

OnReport = Callable[[str, AllocationReport], None]
OnEvent = Callable[[LocalAllocation, EventType, str, str], None]  # whose, type, reason, message


class Worker:
    """One allocation's care. ``on_report`` hears every change of what is to be reported, ``on_alive`` when the guest
    comes to life or ends."""

    def __init__(
        self,
        copy: Checkpoint,
        performer: StepExecutor,
        copies: CheckpointStore,
        clock: Clock,
        on_report: OnReport,
        on_event: OnEvent,
        on_alive: Callable[[], None],
    ) -> None:
        self.notes = AllocationRecord(copy, copies)
        self._unplugged = False
        self._performer, self._clock = performer, clock
        self._on_report, self._on_event, self._on_alive = on_report, on_event, on_alive
        self._superseded, self._blocked, self._stale_volumes = False, "", False
        self.unheard = False
        self._trouble: StepFailure | None = None
        self._stages = StartProgress(clock, self.wanted.report.steps)
        self._woken, self._changed = asyncio.Event(), asyncio.Event()
        self.life = Lifecycle(self.notes, performer.runtimes, clock, self._tell, on_alive, self._woken.set)
        # What was seen when nothing was to be done, and no time would change that: the same again needs no plan and no report.
        self._settled: tuple[PlanInput, GuestFacts, Health] | None = None
        self._shown = AllocationReport()
        self._network: asyncio.Task[str] | None = None  # under way beside the disks

    @property
    def wanted(self) -> LocalAllocation:
        return self.notes.wanted

    @property
    def memory(self) -> AllocationState:
        return self.notes.memory

    @property
    def released(self) -> bool:
        """Whether all of it has gone from this node."""
        return self.notes.released

    @property
    def is_hosted(self) -> bool:
        """Whether its networks are needed on this node."""
        return self.memory.made and not self._unplugged

    @property
    def known(self) -> PlanInput:
        return PlanInput(
            wanted=self.wanted,
            memory=self.memory,
            trouble=self._trouble,
            superseded=self._superseded,
            stale_volumes=self._stale_volumes,
            blocked=self._blocked,
            unheard=self.unheard,
            can_suspend=self._performer.runtimes.can_suspend(self.wanted),
            can_adjust=self._performer.runtimes.can_adjust(self.wanted),
            restart_at=self.life.restart_at,
            moving=self._performer.movers.is_leading(self.wanted, self.memory.part),
            storing=self._performer.movers.is_storing(self.wanted.uid),
            unwell=self.life.unwell,
        )

    def update(self, envelope: Envelope) -> bool:
        """The server listed the allocation, or changed it: whether there may be something else to do now."""
        is_news = self.notes.update(envelope)
        self._performer.movers.put(self.wanted)
        self._stages.adopt(self.wanted.report.steps)
        if is_news:
            self._begin_anew()
        return is_news

    def orphan(self) -> None:
        """The server's list doesn't hold the allocation: keep what there is, begin and end nothing."""
        if not self.memory.orphan:
            self.notes.memory = replace(self.memory, orphan=True)
            self._begin_anew()

    def hear(self) -> None:
        """The server has spoken, or was waited for long enough."""
        if self.unheard:
            self.unheard = False
            self._woken.set()

    def note_stale(self, volumes: set[str]) -> None:
        """The data of these volumes is another node's by now: if it has no other ones, they go with it."""
        mine = {volume.uid for volume in self.wanted.spec.volumes}
        self._stale_volumes = bool(mine) and mine <= volumes

    def relate(self, *, superseded: bool, blocked: str) -> None:
        """Tell how it stands to the others on this node: to other incarnations, and to who writes to its volumes."""
        if (superseded, blocked) != (self._superseded, self._blocked):
            self._superseded, self._blocked = superseded, blocked
            self._begin_anew()

    def look(self) -> None:
        """Something about the guest may have changed."""
        self._woken.set()

    async def care(self) -> None:
        """Do what is to be done, until everything of the allocation is gone from the node."""
        try:
            await self._care()
        finally:
            self.life.rest()

    async def _care(self) -> None:
        while not self.released:
            self._woken.clear()
            self._changed.clear()
            try:
                look_at = await self._turn()
            except Exception as problem:  # a defect in one step must not leave the guest without care
                log.exception("%s", self.wanted.what)
                look_at = self._fail(problem).retry_at
            if not self.released:
                pause = LOOK_SECONDS if look_at is None else min(LOOK_SECONDS, look_at - self._clock.elapsed())
                await wait_for_event(self._clock, self._woken, pause)

    async def _turn(self) -> float | None:
        """Look once and act once; when to look again at the latest (elapsed seconds)."""
        guest = await self.life.look()
        known = self.known
        seen = (known, guest, self.life.health)
        if seen == self._settled:
            self._on_report(self.wanted.name, self._shown)
            await self.notes.note(self.memory)  # it may not have been kept the last time
            return None
        self._settled = None
        plan = plans.plan_allocation(known, guest, self._clock.elapsed())
        self._stages.rest()
        if not plan.steps:
            self._show(plan, guest)
            if plan.look_at is None and not known.moving and not known.storing:  # those tell how far they are
                self._settled = seen
            await self.notes.note(self.memory)
            return plan.look_at
        await self._carry_out(plan, guest)
        return self._clock.elapsed()

    def _tell(self, type_: EventType, reason: str, message: str) -> None:
        self._on_event(self.wanted, type_, reason, message)

    async def _carry_out(self, plan: Plan, guest: GuestFacts) -> None:
        alive = plans.is_alive(guest)
        prepared = Prepared(
            leftover=self.memory.leftover,
            part=choose_part(self.memory, self.wanted.spec),
            store=self._plan_store(plan),
            digest=find_digest(self.memory, self.wanted.spec, runs=alive),
            adjusting=Step.ADJUST in plan.steps,
        )
        if alive and guest.shape is not None and prepared.adjusting:
            prepared.attached = list(guest.shape.disks)
        self._stages.quiet = Step.ADJUST in plan.steps
        try:
            await self._take_steps(plan, prepared)
            if self._network is not None:  # cheaper to let it end than to do it again
                await asyncio.gather(self._network, return_exceptions=True)
        finally:
            self._end_network()

    async def _take_steps(self, plan: Plan, prepared: Prepared) -> None:
        for step in plan.steps:
            if self._changed.is_set():
                return
            self._stages.begin(step)
            try:
                if step is Step.RELOCATE:
                    self.notes.memory = replace(self.memory, store=prepared.store)
                    await self.notes.save()
                await self._before(step)
                if step is Step.DISK and Step.NETWORK in plan.steps:
                    await self._begin_network(prepared)
                self._show(plan, None)
                detail = await self._perform(step, prepared, plan)
            except (WeftError, OSError) as problem:
                self._stages.fail(step)
                self.notes.memory = after_refusal(step, self.memory, self.wanted.spec, self._fail(problem))
                await self.notes.note(self.memory)
                return
            if detail is None:
                return
            self._after(step, detail, prepared)
            self._stages.end(step, detail)  # shown with what comes next: a step, or the look that follows the last one
        self._trouble = None
        if plan.steps[-1] is not Step.START:  # how that went the look finds out, and writes down
            await self.notes.note(self.memory)

    async def _begin_network(self, prepared: Prepared) -> None:
        """Let the network be made while the disks are: neither needs the other, and both wait for programs."""
        self._stages.begin(Step.NETWORK)
        await self._before(Step.NETWORK)
        self._network = asyncio.ensure_future(
            self._performer.perform(Step.NETWORK, self.wanted, prepared, lambda detail: None)
        )

    def _end_network(self) -> None:
        """Give up on a network that is still being made when the worker ends; its next one makes it again."""
        network, self._network = self._network, None
        if network is not None:
            network.add_done_callback(lambda done: done.cancelled() or done.exception())
            network.cancel()

    async def _perform(self, step: Step, prepared: Prepared, plan: Plan) -> str | None:
        """The step's word on itself; None when it was given up because the wish has changed."""

        def tell(detail: str) -> None:
            self._stages.tell(step, detail)
            self._show(plan, None)

        if step is Step.NETWORK and self._network is not None:
            return await self._network
        performing = self._performer.perform(step, self.wanted, prepared, tell)
        if step is not Step.IMAGE:
            return await performing
        work, changed = asyncio.ensure_future(performing), None
        try:
            await self._clock.sleep(0.0)  # what is here already is found at once
            if not work.done():
                changed = asyncio.ensure_future(self._changed.wait())  # a fetch may take minutes: don't sit it out
                await asyncio.wait((work, changed), return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            if changed is not None:
                changed.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def _before(self, step: Step) -> None:
        """Remember durably what is about to be done. Raises NotKept for what must be known after a power cut; taking away
        needs no room."""
        before, spec = self.memory, self.wanted.spec
        again = step is Step.START and starts_again(before, spec)
        resumes = self.life.guest is not None and self.life.guest.state == "suspended"
        begun = before_step(step, before, spec, choose_part(before, spec), resumes=resumes)
        if step in (Step.NETWORK, Step.UNPLUG):
            self._unplugged = step is Step.UNPLUG
        elif step is Step.FORGET:
            await self.notes.note_departure()
        write = self.notes.save if step in (*BRING_UP, Step.OPEN, Step.SEND) else self.notes.note
        await write(begun)
        self.notes.memory = merge_heard(before, begun, self.memory)
        if again:
            self._tell("Normal", "GuestRestarted", f"restart {begun.restarts}")

    def _plan_store(self, plan: Plan) -> DiskRelocation | None:
        """What there is to remember of the move of a disk, or would be if it began."""
        store, order = self.memory.store, self.wanted.spec.storage
        if Step.RELOCATE not in plan.steps or order is None or (store is not None and store.key == order.key):
            return store
        return begin_store(self.wanted, order)

    def _after(self, step: Step, detail: str, prepared: Prepared) -> None:
        spec = self.wanted.spec
        self.notes.memory = after_pull(self.memory, spec, prepared)
        taken_over = spec.move is not None and spec.move.taken_over
        part = choose_part(self.memory, spec)
        self.notes.memory = after_step(step, self.memory, detail, part, taken_over=taken_over)
        if step is Step.START:
            self.life.begin()
            if detail:
                self._tell("Warning", "BegunAfresh", f"it couldn't resume from its saved state: {detail}")
        elif step is Step.CANCEL or (step in (Step.GIVE_UP, Step.LEAVE) and part is not None):
            self._tell_standing()
        elif step is Step.FORGET:
            self.notes.release()
            self.life.alive = False
            self._on_report(self.wanted.name, self._report(Plan((), "released"), None))
            self._on_alive()

    def _tell_standing(self) -> None:
        if self.memory.orphan:
            self._on_alive()

    def _fail(self, problem: Exception) -> StepFailure:
        trouble = failure_of(problem, self._trouble, self._clock.elapsed())
        if self._trouble is None or (self._trouble.reason, self._trouble.message) != (trouble.reason, trouble.message):
            self._tell("Warning", trouble.reason, trouble.message)
        self._trouble = trouble
        return trouble

    def _begin_anew(self) -> None:
        self._trouble = None
        self._changed.set()
        self._woken.set()

    def _show(self, plan: Plan, guest: GuestFacts | None) -> None:
        if not self.released and self.life.guest is not None:
            self._shown = self._report(plan, guest or self.life.guest)
            self._on_report(self.wanted.name, self._shown)

    def _report(self, plan: Plan, guest: GuestFacts | None) -> AllocationReport:
        state = state_of(plan, self._stages.current)
        if state == "running":
            self._stages.arrive()
        movers, memory = self._performer.movers, self.memory
        move = movers.report(self.wanted, memory.part) or movers.report_storage(self.wanted, memory.store)
        return make_report(self.wanted, memory, plan, state, guest, self._stages.list(), move, self.life.health)
