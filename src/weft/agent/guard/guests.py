"""Renews, at the node's guard, the time of guests whose cluster has to be known as primary.

A guest's time is put off when the server gives back a stamp of this node's. The guard, a process of its own, ends those whose
time is over; this part sees to it that there is one, that nothing starts that it doesn't hold, and that people read what it did.
Woken by answers to reports, changes of allocations, and time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msgspec.structs import replace

from weft.agent.guard.plan import (
    RETRY_SECONDS,
    GuardedGuest,
    describe_guard,
    explain_unheld,
    find_pause,
    find_until,
    plan_guard,
)
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.guard import GuardDriver, Held
from weft.contracts.wakeup import Wake
from weft.objects.errors import WeftError
from weft.protocol.failover.stamp import write_stamp

ENDED = "EndedByGuard"
log = logging.getLogger("weft.agent")


class GuardedGuests:
    """``guard`` None: this node can hold none, so that no guest starts that has to be held."""

    def __init__(self, guard: GuardDriver | None, table: AllocationTable, reporter: Reporter, clock: Clock) -> None:
        self._guard, self._table, self._reporter = guard, table, reporter
        self._wake = Wake(clock)
        self._until: dict[str, float] = {}  # as stamps say, by the guest's id
        self._held: dict[str, Held] = {}  # by the guard, by the same
        self._shown = set[tuple[str, float]]()  # ends that people can read of
        self._problem, self._troubled = "this node has no guard", ""
        self._words: dict[str, str] = {}  # that were reported

    async def keep(self) -> None:
        if self._guard is None:
            return
        self._problem = await self._guard.check()
        self._reporter.wake()
        known = False
        while True:
            pause = RETRY_SECONDS
            try:
                if not known or any(one.until <= self._guard.read_time() for one in self._held.values()):
                    self._note(await self._guard.read())
                    known = True
                await self._renew(self._guard)
                self._troubled = ""
                pause = find_pause(self._held, self._guard.read_time())
            except WeftError as problem:
                if problem.message != self._troubled:
                    self._troubled = problem.message
                    log.warning("guard: %s", problem.message)
                self._end_due(self._guard)
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
    def ability(self) -> str:
        """The node's report of the ability to guard: yes, or why guests can't be guarded here."""
        return self._problem or "yes"

    def make_stamp(self) -> str:
        """Make a stamp of now, before a report is sent; "" if nothing is guarded here."""
        if self._guard is None or not self.are_some:
            return ""
        return write_stamp(self._guard.boot_id, self._guard.read_time())

    def take_stamps(self, stamps: Mapping[str, str]) -> None:
        """The server's answer: stamps of this node's, by the workload's uid."""
        if self._guard is None or not stamps:
            return
        now, boot_id = self._guard.read_time(), self._guard.boot_id
        for state in self._table:
            stamp = stamps.get(state.local.spec.workload.uid)
            if state.local.spec.guard and stamp and (until := find_until(stamp, boot_id, now)) is not None:
                self._until[state.local.id] = max(until, self._until.get(state.local.id, 0.0))
        self._wake.ring()

    def describe(self) -> dict[str, str]:
        """Describe the guarded guests for the node's report."""
        now = self._guard.read_time() if self._guard is not None else 0.0
        words = {
            guest.workload: describe_guard(guest, self._until.get(name), self._held.get(name), now, self._problem)
            for name, guest in self._find_guests().items()
        }
        self._words = {workload: word for workload, word in words.items() if word}
        return self._words

    async def _renew(self, guard: GuardDriver) -> None:
        """Raises DriverFailed."""
        guests = self._find_guests()
        self._until = {name: at for name, at in self._until.items() if name in guests}
        plan = plan_guard(guests, self._until, self._held)
        if plan.drop:
            await guard.drop(plan.drop)
            self._held = {name: one for name, one in self._held.items() if name not in plan.drop}
        if plan.renew:
            self._note(await guard.renew(plan.renew))
        now = guard.read_time()
        for state in self._table:
            if state.local.spec.guard == "hold":
                if state.local.id in self._held and not state.checkpoint.held and not state.released:
                    state.checkpoint = replace(state.checkpoint, held=True)
                    await state.save()  # before anybody reads that it is held
                _set_unheld(state, explain_unheld(self._held.get(state.local.id), now))

    def _note(self, held: Mapping[str, Held]) -> None:
        self._held = dict(held)
        for state in self._table:
            one = held.get(state.local.id)
            if one is not None and one.ended_at and (state.local.id, one.ended_at) not in self._shown:
                self._shown.add((state.local.id, one.ended_at))
                self._reporter.put_event(
                    state.local.spec.workload,
                    "Warning",
                    ENDED,
                    "its guest was ended on this node: neither the witness nor the other cluster confirmed in time that this "
                    "cluster is primary for it",
                )

    def _end_due(self, guard: GuardDriver) -> None:
        """The guard can't be reached, nor started: this process ends those whose time is over."""
        now = guard.read_time()
        for state in self._table:
            if state.local.spec.guard == "hold" and not state.released:
                held = self._held.get(state.local.id)
                if held is None and not state.checkpoint.held:
                    _set_unheld(state, explain_unheld(None, now))
                elif held is None or held.until <= now:
                    guard.end(state.local.id)
                    _set_unheld(state, explain_unheld(None, now))

    def _find_guests(self) -> dict[str, GuardedGuest]:
        """Find the guarded guests by id."""
        return {guest.id: guest for state in self._table if (guest := _read_guest(state)) is not None}


def _set_unheld(state: AllocationState, why: str) -> None:
    if why != state.unheld:
        state.unheld = why
        state.replan()


def _read_guest(state: AllocationState) -> GuardedGuest | None:
    local = state.local
    if state.released or not local.spec.guard:
        return None
    return GuardedGuest(local.id, local.spec.workload.uid, local.spec.guard, state.checkpoint.held)
