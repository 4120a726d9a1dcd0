"""Cares for one allocation: looks, decides with ``plan``, performs, tells; a task each, so none waits for another.

Reads the allocation as the feed brings it and the guest's facts; writes its durable copy before acting. Woken by a
changed allocation, by the runtime, and when a pause is over.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Literal

import msgspec

from weft.agent import plan as plans
from weft.agent import shape
from weft.agent.bygone import find_bygone, recall_part
from weft.agent.guest import Prepared
from weft.agent.known import Known, Memory, Part, Run, Store, Trouble, Wanted, place_disks, read_wanted
from weft.agent.moving.storage import begin_store
from weft.agent.offline import Copies, Copy, NotKept
from weft.agent.perform import RUNS, Performer
from weft.agent.plan import BRING_UP, Plan, Step
from weft.agent.stages import Stages
from weft.agent.waiting import wait_for_event
from weft.contracts.clock import Clock
from weft.contracts.runtime import GuestFacts
from weft.kinds.allocation import AllocatedNic, AllocationReport, AllocationSpec, list_disks
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
        )

    def update(self, envelope: Envelope) -> None:
        """The server listed the allocation, or changed it."""
        wanted = self._place(read_wanted(envelope))
        before = (self.wanted.spec, self.wanted.deleting, self.memory.orphan)
        self._envelope, self.wanted = envelope, wanted
        self._performer.movers.put(wanted)
        self._stages.adopt(wanted.report.steps)
        leftover = _find_leftover(self.memory.leftover, before[0], wanted.spec)
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
        part = self.memory.part
        if part is None:
            return "open" if self.wanted.spec.role == "target" else "here"
        if part.side == "target" and part.taken:
            return "left" if part.over else "here"
        if part.side == "target":
            return "given up" if part.over else "open"
        return "left" if part.taken else "open"

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
        before, self.memory = self.memory, plans.observe(self.memory, guest)
        now = self._clock.elapsed()
        alive = plans.is_alive(guest)
        if alive and self._up_since is None:
            self._up_since = now
        if self.memory.run == "ended" and before.run != "ended":
            self._note_end(guest, now)
        if not alive:
            self._up_since = None
        if alive != self.alive:
            self.alive = alive
            self._on_alive()
        return guest

    def _note_end(self, guest: GuestFacts, now: float) -> None:
        if self._up_since is not None and now - self._up_since >= plans.SETTLED_SECONDS:
            self._ended_in_a_row = 0
        self._ended_in_a_row += 1
        self._restart_at = now + plans.pause_after(self._ended_in_a_row)
        reason = self.memory.ended
        message = guest.message or f"the guest ended by itself ({reason})"
        self._on_event(self.wanted, "Normal" if reason == plans.POWERED_OFF else "Warning", "GuestEnded", message)

    async def _carry_out(self, plan: Plan) -> None:
        prepared = Prepared(leftover=self.memory.leftover, part=self._plan_part(), store=self._plan_store(plan))
        if self._guest is not None and plans.is_alive(self._guest) and self._guest.shape is not None:
            prepared.attached = list(self._guest.shape.disks) if Step.ADJUST in plan.steps else []
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
        memory, spec, again = self.memory, self.wanted.spec, False
        part = memory.part
        if step in BRING_UP:
            memory = msgspec.structs.replace(memory, made=True)
        if step is Step.START:
            resumes = self._guest is not None and self._guest.state == "suspended"
            again = memory.run == "ended" and spec.boots <= memory.boots
            memory = msgspec.structs.replace(
                memory,
                run="starting",
                boots=max(spec.boots, memory.boots),
                restarts=memory.restarts + 1 if again else memory.restarts,
                answered=memory.answered and resumes,
                ended="",
            )
        elif step is Step.NETWORK:
            self._unplugged = False
        elif step is Step.UNPLUG:
            self._unplugged = True
        elif step in (Step.STOP, Step.REMOVE):
            memory = msgspec.structs.replace(memory, run="down", ended="")
        elif step is Step.LEAVE:
            memory = msgspec.structs.replace(memory, run="down", ended="")
        elif step is Step.FORGET:
            await self._note_departure()
        if step in (Step.OPEN, Step.SEND):
            memory = msgspec.structs.replace(memory, part=self._plan_part())
        if step is Step.OPEN:
            memory = msgspec.structs.replace(memory, boots=max(spec.boots, memory.boots))
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

    def _plan_part(self) -> Part | None:
        """What this node has in the allocation's move, or would have if it began."""
        move, part, role = self.wanted.spec.move, self.memory.part, self.wanted.spec.role
        if part is not None or move is None or role not in ("source", "target"):
            return part
        side: Literal["source", "target"] = "source" if role == "source" else "target"
        cold = move.mode == "cold"
        return Part(move.key, side, move.peer_allocation, shared=move.shared, node=move.peer, cold=cold)

    def _after(self, step: Step, detail: str) -> None:
        if step is Step.START:
            self.memory = msgspec.structs.replace(self.memory, run="up")
            self._up_since = self._clock.elapsed()
        elif step is Step.TIDY:
            self.memory = msgspec.structs.replace(self.memory, leftover=[])
        elif step in (Step.GIVE_UP, Step.LEAVE) and (part := self._plan_part()) is not None:
            runs, move = detail == RUNS, self.wanted.spec.move
            taken = part.taken or runs or (move is not None and move.taken_over)
            part = msgspec.structs.replace(part, over=not runs, taken=taken)
            self.memory = msgspec.structs.replace(self.memory, part=part, run="up" if runs else self.memory.run)
            self._tell_standing()
        elif step is Step.CANCEL:
            self.memory = msgspec.structs.replace(self.memory, part=None)
            self._tell_standing()
        elif step is Step.SETTLE and self.memory.part is not None:
            self.memory = msgspec.structs.replace(self.memory, part=None, took=self.memory.part.key)
        elif step is Step.FORGET:
            self._copies.remove(self.wanted.id)
            self._saved = None
            self.memory = Memory(boots=self.memory.boots, restarts=self.memory.restarts)
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
        state = plan.state
        if self._stages.current is Step.START:
            state = "starting"
        elif self._stages.current in BRING_UP and state == "stopping":
            state = "preparing"
        if state == "running":
            self._stages.arrive()
        alive = guest is not None and plans.is_alive(guest)
        kept = guest is not None and (alive or guest.state == "suspended")
        return AllocationReport(
            incarnation=self.wanted.spec.incarnation,
            state=state,
            boots=self.memory.boots,
            ready=guest.ready if guest is not None and alive else None,
            boot_id=guest.boot_id if guest is not None and kept else None,
            accelerator=guest.accelerator if guest is not None and kept else None,
            started_at=guest.started_at if guest is not None and kept else None,
            restarts=self.memory.restarts,
            has=shape.tell_has(guest, self.wanted.spec) if guest is not None and alive else None,
            room=shape.tell_room(guest) if guest is not None and alive else None,
            fitted=self._fitted(guest) if guest is not None and alive else 0,
            reason=plan.reason,
            message=plan.message,
            steps=self._stages.list(),
            move=self._performer.movers.report(self.wanted, self.memory.part)
            or self._performer.movers.report_storage(self.wanted, self.memory.store),
        )

    def _fitted(self, guest: GuestFacts) -> int:
        fits = guest.shape is None or shape.is_shaped(self.wanted.spec, guest.shape)
        return self.wanted.generation if fits else 0


def _find_leftover(left: list[AllocatedNic], old: AllocationSpec, new: AllocationSpec) -> list[AllocatedNic]:
    """NICs that were asked for once and are not any more."""
    kept = {nic.uid for nic in new.nics}
    return list({nic.uid: nic for nic in [*left, *old.nics] if nic.uid not in kept}.values())
