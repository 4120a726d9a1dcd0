"""Renews, at the node's guard, the time of guests whose cluster has to be known as primary, or whose node has to be in contact.

A guest's time is put off when the server gives back a stamp of this node's, and when it answers a report while the guest is surely
this node's (``Contact``). The guard, a process of its own, ends those whose time is over; this part sees to it that there is one,
that nothing starts that it doesn't hold, and that people read what it did. Woken by answers to reports, changes of allocations,
and time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from msgspec.structs import replace

from weft.agent.guard.plan import (
    RETRY_SECONDS,
    GuardedGuest,
    describe_guard,
    explain_end,
    explain_wait,
    find_end,
    find_pause,
    find_until,
    plan_guard,
)
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.guard import MOST_GUESTS, GuardDriver, Held
from weft.contracts.wakeup import Wake
from weft.failover.timing import NODES
from weft.kinds.allocation import ends_if_lost, is_lost
from weft.objects.errors import WeftError
from weft.protocol.failover.stamp import write_stamp
from weft.protocol.report import ReportAnswer

ENDED = "EndedByGuard"
log = logging.getLogger("weft.agent")


class GuardedGuests:
    """``guard`` None: this node can hold none, so that no guest starts that has to be held; one that ends only if this node is lost
    starts once the server has confirmed it."""

    def __init__(self, guard: GuardDriver | None, table: AllocationTable, reporter: Reporter, clock: Clock) -> None:
        self._guard, self._table, self._reporter = guard, table, reporter
        self._wake = Wake(clock)
        self._until: dict[str, float] = {}  # as stamps say, by the guest's id
        self._held: dict[str, Held] = {}  # by the guard, by the same
        self._paused_until = -math.inf  # as the servers said
        self._shown = set[tuple[str, float]]()  # ends that people can read of
        self._problem, self._troubled = "this node has no guard", ""
        self._words: dict[str, str] = {}  # that were reported

    async def keep(self) -> None:
        if self._guard is not None:
            self._problem = await self._guard.check()
        self._reporter.wake()
        known = False
        while True:
            pause = RETRY_SECONDS
            try:
                if self._guard is not None:
                    if not known or any(one.until <= self._read_time() for one in self._held.values()):
                        self._note(await self._guard.read())
                        known = True
                    await self._renew(self._guard)
                await self._settle()
                self._troubled = ""
                pause = find_pause(self._held, self._read_time())
            except WeftError as problem:
                if problem.message != self._troubled:
                    self._troubled = problem.message
                    log.warning("guard: %s", problem.message)
                self._end_due()
            if self.describe() != self._words:
                self._reporter.wake()
            await self._wake.wait(pause)

    def wake(self) -> None:
        """Allocations may have changed."""
        self._wake.ring()

    @property
    def are_some(self) -> bool:
        return self._guard is not None and any(state.local.spec.guard for state in self._table)

    @property
    def end_if_lost(self) -> bool:
        """Whether any does."""
        return any(ends_if_lost(state.local.spec) for state in self._table)

    @property
    def ability(self) -> str:
        """The node's report of the ability to guard: yes, or why guests can't be guarded here."""
        return self._problem or "yes"

    def make_stamp(self) -> str:
        """Make a stamp of now, before a report is sent; "" if nothing is guarded here."""
        if self._guard is None or not self.are_some:
            return ""
        return write_stamp(self._guard.boot_id, self._guard.read_time())

    def take_answer(self, answer: ReportAnswer) -> None:
        """The server's answer: stamps of this node's, and a pause that the servers keep, too."""
        stamps = answer.stamps
        if answer.guard_pause:
            self._paused_until = max(self._paused_until, self._reporter.contact.sent_at + answer.guard_pause)
        if self._guard is not None and stamps:
            now, boot_id = self._guard.read_time(), self._guard.boot_id
            for state in self._table:
                stamp = stamps.get(state.local.spec.workload.uid)
                if state.local.spec.guard and stamp and (until := find_until(stamp, boot_id, now)) is not None:
                    self._until[state.local.id] = max(until, self._until.get(state.local.id, 0.0))
        self._wake.ring()

    def describe(self) -> dict[str, str]:
        """Describe, for the node's report, the guests whose cluster has to be known as primary."""
        now = self._read_time()
        words = {
            guest.workload: describe_guard(guest, self._until.get(name), self._held.get(name), now, self._problem)
            for name, guest in self._find_guests().items()
            if guest.mode
        }
        self._words = {workload: word for workload, word in words.items() if word}
        return self._words

    async def _renew(self, guard: GuardDriver) -> None:
        """Raises DriverFailed."""
        guests = {name: one for name, one in self._find_guests().items() if one.mode or self._can_hold}
        self._until = {name: at for name, at in self._until.items() if name in guests}
        plan = plan_guard(guests, self._until, self._held)
        if plan.drop:
            await guard.drop(plan.drop)
            self._held = {name: one for name, one in self._held.items() if name not in plan.drop}
        if plan.renew:
            self._note(await guard.renew(plan.renew))

    async def _settle(self) -> None:
        """Save what is held now, and let guests start that may. Raises CheckpointFailed."""
        guests = self._find_guests()
        for state in self._table:
            guest = guests.get(state.local.id)
            await self._note_held(state, guest)
            if guest is not None:
                self._set_unheld(state, guest)

    async def _note_held(self, state: AllocationState, guest: GuardedGuest | None) -> None:
        """Save for which reasons the guard holds it, before anybody reads of that. Raises CheckpointFailed."""
        if state.released:
            return
        name, spec, fresh = state.local.id, state.local.spec, state.checkpoint
        if not ends_if_lost(spec):
            fresh = replace(fresh, guarded=spec.loss_guard)
        if guest is not None and (held := self._held.get(name)) is not None:
            if guest.ends_if_lost and guest.answered_until is not None and held.until <= guest.answered_until:
                fresh = replace(fresh, guarded=spec.loss_guard)
            if guest.mode == "hold" and name in self._until:
                fresh = replace(fresh, held=True)
        if fresh != state.checkpoint:
            await state.save(fresh)
            state.checkpoint = replace(state.checkpoint, guarded=fresh.guarded, held=fresh.held)
            state.wake()

    def _note(self, held: Mapping[str, Held]) -> None:
        self._held = dict(held)
        guests = self._find_guests()
        for state in self._table:
            name = state.local.id
            one, guest = held.get(name), guests.get(name)
            if one is not None and guest is not None and one.ended_at and (name, one.ended_at) not in self._shown:
                self._shown.add((name, one.ended_at))
                why = explain_end(guest, self._until.get(name))
                message = f"its guest was ended on this node: {why}"
                self._reporter.put_event(state.local.spec.workload, "Warning", ENDED, message)

    def _end_due(self) -> None:
        """The guard can't be reached, nor started: this process ends those whose time is over."""
        now, guests = self._read_time(), self._find_guests()
        for state in self._table:
            guest, held = guests.get(state.local.id), self._held.get(state.local.id)
            if guest is None or (guest.mode != "hold" and not guest.ends_if_lost):
                continue
            until = held.until if held is not None else find_end(guest, self._until.get(guest.id), None)
            if until is not None and until <= now and self._guard is not None:
                self._guard.end(guest.id)
            self._set_unheld(state, guest)

    def _set_unheld(self, state: AllocationState, guest: GuardedGuest) -> None:
        name, now = guest.id, self._read_time()
        can_hold = self._can_hold and (name in self._held or len(self._held) < MOST_GUESTS)
        why = explain_wait(guest, self._until.get(name), self._held.get(name), now, can_hold=can_hold)
        if why != state.unheld:
            state.unheld = why
            state.replan()

    @property
    def _can_hold(self) -> bool:
        return self._guard is not None and not self._problem

    def _read_time(self) -> float:
        return self._reporter.contact.read_time()

    def _find_guests(self) -> dict[str, GuardedGuest]:
        """Find the guarded guests by id."""
        return {
            state.local.id: self._read_guest(state)
            for state in self._table
            if not state.released and (state.local.spec.guard or ends_if_lost(state.local.spec))
        }

    def _read_guest(self, state: AllocationState) -> GuardedGuest:
        local, checkpoint = state.local, state.checkpoint
        return GuardedGuest(
            local.id,
            local.spec.workload.uid,
            local.spec.guard,
            was_held=checkpoint.held,
            ends_if_lost=ends_if_lost(local.spec),
            was_guarded=checkpoint.guarded == local.spec.loss_guard,
            lease=NODES.lease + local.spec.loss_after,
            answered_until=self._find_answered(state),
        )

    def _find_answered(self, state: AllocationState) -> float | None:
        """The time until which it may run by the newest answer; None if none counts for it. An orphan is on no list, and ends only
        by evidence."""
        local, contact = state.local, self._reporter.contact
        if not ends_if_lost(local.spec) or is_lost(local.spec):
            return None
        if not (
            contact.is_in_contact if state.checkpoint.orphan else contact.confirms(local.name, asks=not local.deleting)
        ):
            return None
        return max(contact.sent_at, self._paused_until) + NODES.lease + local.spec.loss_after
