"""Cares for one allocation: looks, decides with ``plan``, performs, tells; a task each, so none waits for another.

Reads the allocation as the feed brings it and the guest's facts; writes its durable copy before acting. Woken by a
changed allocation, by the runtime, and when a pause is over.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable

import msgspec

from weft.agent import plan as plans
from weft.agent.bygone import find_bygone, recall_part
from weft.agent.guest import Prepared
from weft.agent.health import Health, HealthWatch
from weft.agent.known import Known, Memory, Part, Run, Store, Trouble, Wanted, place_disks, read_wanted
from weft.agent.moving.storage import begin_store
from weft.agent.offline import Copies, Copy, NotKept
from weft.agent.perform import Performer
from weft.agent.plan import BRING_UP, Plan, Step
from weft.agent.remembered import (
    after_step,
    before_step,
    choose_part,
    find_leftover,
    starts_again,
    tell_standing,
)
from weft.agent.stages import Stages
from weft.agent.telling import make_report, tell_state
from weft.agent.waiting import wait_for_event
from weft.contracts.clock import Clock
from weft.contracts.runtime import GuestFacts
from weft.kinds.allocation import AllocationReport, list_disks
from weft.kinds.orphan import Standing
from weft.objects.envelope import Envelope
from weft.objects.errors import Forbidden, InvalidInput, WeftError

log = logging.getLogger("weft.agent")
LOOK_SECONDS = 10.0  # even if nobody says that anything changed

OnReport = Callable[[str, AllocationReport], None]
OnEvent = Callable[[Wanted, str, str, str], None]  # whose, type, reason, message


class Worker:
    """One allocation's care. ``on_report`` hears every change of what is to be reported, ``on_alive`` when the guest
    comes to life or ends."""

    def __init__(
        self,
        copy: Copy,
        performer: Performer,
        copies: Copies,
        clock: Clock,
        on_report: OnReport,
        on_event: OnEvent,
        on_alive: Callable[[], None],
    ) -> None:
        self.memory = copy.memory
        self.wanted = place_disks(read_wanted(copy.allocation), copy.memory.store)
        if self.memory.part is None:
            self.memory = msgspec.structs.replace(self.memory, part=recall_part(self.memory, self.wanted.spec))
        self.alive = copy.memory.run in ("up", "starting")
        self.released = False
        self._unplugged = False
        self._envelope = copy.allocation
        self._performer, self._copies, self._clock = performer, copies, clock
        self._on_report, self._on_event, self._on_alive = on_report, on_event, on_alive
        self._saved: tuple[object, ...] | None = None
        self._saving = asyncio.Lock()
        self._superseded, self._blocked, self._stale_volumes = False, "", False
        self.unheard = False
        self._trouble: Trouble | None = None
        self._restart_at = 0.0
        self._ended_in_a_row = 0
        self._up_since: float | None = None
        self._stages = Stages(clock, self.wanted.report.steps)
        self._woken, self._changed = asyncio.Event(), asyncio.Event()
        self._guest: GuestFacts | None = None
        self._health = HealthWatch(clock, self._on_health)
        self._unwell = ""  # why it is being ended
        self._told_health: Health | None = Health(self.wanted.report.health, 0, self.wanted.report.health_message)
        self._network: asyncio.Task[str] | None = None  # under way beside the disks

    @property
    def is_hosted(self) -> bool:
        """Whether its networks are needed on this node."""
        return self.memory.made and not self._unplugged

    @property
    def guest(self) -> GuestFacts | None:
        """Its guest's facts by the last look."""
        return self._guest

    @property
    def known(self) -> Known:
        return Known(
            wanted=self.wanted,
            memory=self.memory,
            trouble=self._trouble,
            superseded=self._superseded,
            stale_volumes=self._stale_volumes,
            blocked=self._blocked,
            unheard=self.unheard,
            can_suspend=self._performer.can_suspend(self.wanted),
            can_adjust=self._performer.can_adjust(self.wanted),
            restart_at=self._restart_at,
            moving=self._performer.movers.is_leading(self.wanted, self.memory.part),
            storing=self._performer.movers.is_storing(self.wanted.uid),
            unwell=self._unwell,
        )

    def update(self, envelope: Envelope) -> None:
        """The server listed the allocation, or changed it."""
        wanted = self._place(read_wanted(envelope))
        before = (self.wanted.spec, self.wanted.deleting, self.memory.orphan)
        self._envelope, self.wanted = envelope, wanted
        self._performer.movers.put(wanted)
        self._stages.adopt(wanted.report.steps)
        leftover = find_leftover(self.memory.leftover, before[0], wanted.spec)
        part = self.memory.part or recall_part(self.memory, wanted.spec)
        self.memory = msgspec.structs.replace(self.memory, orphan=False, leftover=leftover, part=part)
        if before != (wanted.spec, wanted.deleting, False):
            self._begin_anew()

    def orphan(self) -> None:
        """The server's list doesn't hold the allocation: keep what there is, begin and end nothing."""
        if not self.memory.orphan:
            self.memory = msgspec.structs.replace(self.memory, orphan=True)
            self._begin_anew()

    async def keep(self) -> None:
        """Have the copy say what is known now. Raises NotKept."""
        await self._save(None)

    def hear(self) -> None:
        """The server has spoken, or was waited for long enough."""
        if self.unheard:
            self.unheard = False
            self._woken.set()

    @property
    def standing(self) -> Standing:
        """Where its guest is, for all that this node knows."""
        return tell_standing(self.memory, self.wanted.spec)

    @property
    def last_move(self) -> str:
        """The key of the move that it was a side of last, as far as this node remembers."""
        return self.memory.part.key if self.memory.part is not None else self.memory.took

    def note_stale(self, volumes: set[str]) -> None:
        """The data of these volumes is another node's by now: if it has no other ones, they go with it."""
        mine = {volume.uid for volume in self.wanted.spec.volumes}
        self._stale_volumes = bool(mine) and mine <= volumes

    def relate(self, *, superseded: bool, blocked: str) -> None:
        """Tell how it stands to the others on this node: to other incarnations, and to who writes to its volumes."""
        if (superseded, blocked) != (self._superseded, self._blocked):
            self._superseded, self._blocked = superseded, blocked
            self._begin_anew()

    def _place(self, wanted: Wanted) -> Wanted:
        """With its disks where they are. What the server knows of by now needn't be remembered."""
        store = self.memory.store
        if store is not None and wanted.spec.storage is None and store.state in ("clear", "over"):
            told = list_disks(wanted.spec).get(store.disk, ("", ""))
            if store.state == "over" or told == (store.pool, store.pool_id):
                self.memory = msgspec.structs.replace(self.memory, store=None)
        return place_disks(wanted, self.memory.store)

    async def keep_store(self, store: Store) -> None:
        """How far the move of a disk to another pool is, to be remembered durably. Raises NotKept."""
        self.memory = msgspec.structs.replace(self.memory, store=store)
        await self._save(None)
        self.wanted = place_disks(self.wanted, store)
        self.look()

    async def keep_part(self, part: Part) -> None:
        """What this node did in the allocation's move, to be remembered durably. Raises NotKept."""
        move = self.wanted.spec.move
        runs = part.taken and part.side == "target" and move is not None and move.mode == "live"
        run: Run = "up" if runs else self.memory.run
        self.memory = msgspec.structs.replace(self.memory, part=part, run=run)
        await self._save(None)
        self.look()

    def look(self) -> None:
        """Something about the guest may have changed."""
        self._woken.set()

    async def care(self) -> None:
        """Do what is to be done, until everything of the allocation is gone from the node."""
        try:
            await self._care()
        finally:
            self._health.rest()

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
        guest = await self._look()
        known = self.known
        plan = plans.plan_allocation(known, guest, self._clock.elapsed())
        self._show(plan, guest)
        if not plan.steps:
            await self._note(self.memory)
            return plan.look_at
        await self._carry_out(plan)
        return self._clock.elapsed()

    async def _look(self) -> GuestFacts:
        guest = self._guest = await self._performer.inspect(self.wanted)
        before, self.memory = self.memory, plans.observe(self.memory, guest, once=self.wanted.spec.once)
        now = self._clock.elapsed()
        alive = plans.is_alive(guest)
        if alive and self._up_since is None:
            self._up_since = now
        if self.memory.run == "ended" and before.run != "ended":
            if self._unwell:
                self.memory = msgspec.structs.replace(self.memory, ended=plans.UNHEALTHY)
            self._note_end(guest, now)
        self._watch_health(guest, now)
        if not alive:
            self._up_since = None
            self._unwell = ""
        if alive != self.alive:
            self.alive = alive
            self._on_alive()
        return guest

    def _watch_health(self, guest: GuestFacts, now: float) -> None:
        container = self.wanted.spec.container
        if container is None or container.health_check is None or guest.state != "running" or self._up_since is None:
            self._health.rest()
            return
        told, self._told_health = self._told_health, None
        runtime, run = self._performer.runtimes.of(self.wanted), (guest.pid, guest.started_at)
        same = told is not None and guest.started_at == self.wanted.report.started_at
        age = now - self._up_since
        told = told if same and told is not None else Health()
        self._health.follow(self.wanted.id, run, container.health_check, runtime, age, told)

    def _on_health(self) -> None:
        health, container = self._health.health, self.wanted.spec.container
        bad = health.state == "unhealthy"
        self._on_event(self.wanted, "Warning" if bad else "Normal", health.state.capitalize(), health.message)
        if bad and container is not None and container.health_check is not None:
            self._unwell = health.message if container.health_check.on_unhealthy == "restart" else ""
        self._woken.set()

    def _note_end(self, guest: GuestFacts, now: float) -> None:
        if self._up_since is not None and now - self._up_since >= plans.SETTLED_SECONDS:
            self._ended_in_a_row = 0
        self._ended_in_a_row += 1
        self._restart_at = now + plans.pause_after(self._ended_in_a_row)
        reason = self.memory.ended
        message = self._unwell or guest.message or f"the guest ended by itself ({reason})"
        self._on_event(self.wanted, "Normal" if reason in plans.GOOD_ENDS else "Warning", "GuestEnded", message)

    async def _carry_out(self, plan: Plan) -> None:
        prepared = Prepared(
            leftover=self.memory.leftover,
            part=choose_part(self.memory, self.wanted.spec),
            store=self._plan_store(plan),
            digest=self._known_digest(),
            adjusting=Step.ADJUST in plan.steps,
        )
        if self._guest is not None and plans.is_alive(self._guest) and self._guest.shape is not None:
            prepared.attached = list(self._guest.shape.disks) if prepared.adjusting else []
        self._stages.quiet = Step.ADJUST in plan.steps
        try:
            await self._take_steps(plan, prepared)
            if self._network is not None:  # cheaper to let it end than to do it again
                await asyncio.gather(self._network, return_exceptions=True)
        finally:
            self._end_network()

    def _known_digest(self) -> str:
        """Of its image, unless that is to be looked up again; what runs has the one it has."""
        container, runs = self.wanted.spec.container, self._guest is not None and plans.is_alive(self._guest)
        if self.wanted.spec.role == "target":
            return self.memory.image or (self.wanted.spec.move.image if self.wanted.spec.move is not None else "")
        fresh = container is not None and container.pulls > self.memory.pulls
        return "" if fresh and not (runs and self.wanted.spec.boots <= self.memory.boots) else self.memory.image

    async def _take_steps(self, plan: Plan, prepared: Prepared) -> None:
        for step in plan.steps:
            if self._changed.is_set():
                return
            self._stages.begin(step)
            try:
                if step is Step.RELOCATE:
                    self.memory = msgspec.structs.replace(self.memory, store=prepared.store)
                    await self._save(None)
                await self._before(step)
                if step is Step.DISK and Step.NETWORK in plan.steps:
                    await self._begin_network(prepared)
                self._show(plan, None)
                detail = await self._perform(step, prepared, plan)
            except (WeftError, OSError) as problem:
                self._stages.fail(step)
                self._fail(problem)
                return
            if detail is None:
                return
            if prepared.pulled is not None:
                container, pulls = self.wanted.spec.container, self.memory.pulls
                comes = self.wanted.spec.role == "target"  # with what it had where it was
                if container is not None and (comes or not prepared.digest):  # it was looked up
                    pulls = container.pulls
                self.memory = msgspec.structs.replace(self.memory, image=prepared.pulled.digest, pulls=pulls)
            self._after(step, detail)
            self._stages.end(step, detail)
            self._show(plan, None)
        self._trouble = None
        await self._note(self.memory)

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
        work = asyncio.ensure_future(self._performer.perform(step, self.wanted, prepared, tell))
        if step is not Step.IMAGE:
            return await work
        changed = asyncio.ensure_future(self._changed.wait())  # a fetch may take minutes: don't sit it out
        try:
            await asyncio.wait((work, changed), return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        finally:
            changed.cancel()
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)

    async def _before(self, step: Step) -> None:
        """Remember durably what is about to be done. Raises NotKept for what must be known after a power cut; taking away
        needs no room."""
        memory, spec, part = self.memory, self.wanted.spec, self.memory.part
        again = step is Step.START and starts_again(memory, spec)
        resumes = self._guest is not None and self._guest.state == "suspended"
        memory = before_step(step, memory, spec, choose_part(memory, spec), resumes=resumes)
        if step in (Step.NETWORK, Step.UNPLUG):
            self._unplugged = step is Step.UNPLUG
        elif step is Step.FORGET:
            await self._note_departure()
        await (self._save(memory) if step in (*BRING_UP, Step.OPEN, Step.SEND) else self._note(memory))
        heard = self.memory.part  # of the move meanwhile
        self.memory = memory if heard is part else msgspec.structs.replace(memory, part=heard)
        if again:
            self._on_event(self.wanted, "Normal", "GuestRestarted", f"restart {memory.restarts}")

    def _plan_store(self, plan: Plan) -> Store | None:
        """What there is to remember of the move of a disk, or would be if it began."""
        store, order = self.memory.store, self.wanted.spec.storage
        if Step.RELOCATE not in plan.steps or order is None or (store is not None and store.key == order.key):
            return store
        return begin_store(self.wanted, order)

    def _after(self, step: Step, detail: str) -> None:
        spec = self.wanted.spec
        taken_over = spec.move is not None and spec.move.taken_over
        part = choose_part(self.memory, spec)
        self.memory = after_step(step, self.memory, detail, part, taken_over=taken_over)
        if step is Step.START:
            self._up_since = self._clock.elapsed()
        elif step is Step.CANCEL or (step in (Step.GIVE_UP, Step.LEAVE) and part is not None):
            self._tell_standing()
        elif step is Step.FORGET:
            self._copies.remove(self.wanted.id)
            self._saved = None
            self.released = True
            self.alive = False
            self._on_report(self.wanted.name, self._report(Plan((), "released"), None))
            self._on_alive()

    def _tell_standing(self) -> None:
        if self.memory.orphan:
            self._on_alive()

    async def _note(self, memory: Memory) -> None:
        """Save what the next look would find out anyway, or will save then."""
        try:
            await self._save(memory)
        except NotKept as problem:
            log.warning("%s: %s", self.wanted.what, problem.message)

    async def _save(self, memory: Memory | None) -> None:
        """``memory``, or what it is once nobody else writes."""
        async with self._saving:
            memory = memory or self.memory
            if self.released:
                return
            state = (self.wanted.spec, self.wanted.deleting, memory)
            if state != self._saved and (memory.made or memory.run != "new"):
                await asyncio.to_thread(self._copies.save, self.wanted.id, Copy(self._envelope, memory))
                self._saved = state

    async def _note_departure(self) -> None:
        """What has gone from here for good, or came by a move, is remembered when all else is forgotten: an older store may ask."""
        part = find_bygone(self.memory)
        if part is None:
            return
        try:
            await asyncio.to_thread(self._copies.save_departure, self.wanted.id, part)
        except NotKept as problem:
            log.warning("%s: %s", self.wanted.what, problem.message)

    def _fail(self, problem: Exception) -> Trouble:
        now, tries = self._clock.elapsed(), (self._trouble.tries if self._trouble else 0) + 1
        heals = not isinstance(problem, (InvalidInput, Forbidden))
        full = isinstance(problem, OSError) and problem.errno == errno.ENOSPC
        reason = problem.token if isinstance(problem, WeftError) else "noSpace" if full else "driverFailed"
        message = problem.message if isinstance(problem, WeftError) else str(problem) or type(problem).__name__
        trouble = Trouble(reason, message, tries, now + plans.pause_after(tries) if heals else None)
        if self._trouble is None or (self._trouble.reason, self._trouble.message) != (reason, message):
            self._on_event(self.wanted, "Warning", reason, message)
        self._trouble = trouble
        return trouble

    def _begin_anew(self) -> None:
        self._trouble = None
        self._changed.set()
        self._woken.set()

    def _show(self, plan: Plan, guest: GuestFacts | None) -> None:
        if not self.released and self._guest is not None:
            self._on_report(self.wanted.name, self._report(plan, guest or self._guest))

    def _report(self, plan: Plan, guest: GuestFacts | None) -> AllocationReport:
        state = tell_state(plan, self._stages.current)
        if state == "running":
            self._stages.arrive()
        movers, memory = self._performer.movers, self.memory
        move = movers.report(self.wanted, memory.part) or movers.report_storage(self.wanted, memory.store)
        return make_report(self.wanted, memory, plan, state, guest, self._stages.list(), move, self._health.health)
