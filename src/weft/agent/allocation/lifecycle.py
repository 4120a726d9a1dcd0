"""Inspects one guest through its runtime, and notes its runs: that it came up, ended or is unhealthy, and when it restarts after it
ended by itself. Called by the allocation's worker.
"""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.allocation import plan as plans
from weft.agent.allocation.facts import is_alive
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import Health, SetUp
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.snapshots import note_beginning
from weft.agent.workload.health import HealthWatch
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.set_up import SetUpWatch, has_set_up
from weft.agent.workload.shape import lacks_devices
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.protocol.report import EventType


class Lifecycle:
    """The runs of the guest of ``state``, and noted there."""

    def __init__(self, state: AllocationState, runtimes: Runtimes, clock: Clock, reporter: Reporter) -> None:
        self._state, self._runtimes, self._clock, self._reporter = state, runtimes, clock, reporter
        self._watch = HealthWatch(state, clock, reporter)
        report = state.local.report
        self._reported: Health | None = Health(report.health, 0, report.health_message)  # by an earlier agent
        self._set_up_watch = SetUpWatch(state, clock, reporter)
        self._reported_set_up = SetUp(report.set_up, report.set_up_message)

    async def inspect(self) -> bool:
        """Note the guest's facts and their consequences; whether it came up or ended since the last call."""
        state = self._state
        guest = state.guest = await self._runtimes.inspect(state.local)
        before = state.checkpoint
        spec = state.local.spec
        state.checkpoint = plans.observe(before, guest, once=spec.once, lacks=lacks_devices(spec, guest.shape))
        state.checkpoint = note_beginning(state.checkpoint, state.local.spec, guest)
        now, alive = self._clock.elapsed(), is_alive(guest)
        if alive and state.up_since is None:
            state.up_since = now
        if state.checkpoint.run == "ended" and before.run != "ended":
            if state.unwell:
                state.checkpoint = replace(state.checkpoint, ended=plans.UNHEALTHY)
            self._note_end(guest, now)
        self._watch_health(guest, now)
        self._watch_set_up(guest, now)
        if not alive:
            state.up_since = None
        has_changed, state.alive = alive != state.alive, alive
        return has_changed

    def close(self) -> None:
        self._watch.stop()
        self._set_up_watch.stop()

    def _watch_health(self, guest: GuestFacts, now: float) -> None:
        state = self._state
        check = kind_of(state.local.spec).find_health_check(state.local.spec)
        if check is None or guest.state != "running" or state.up_since is None:
            self._watch.stop()
            return
        reported, self._reported = self._reported, None
        same = guest.started_at == state.local.report.started_at
        run, runtime = (guest.pid, guest.started_at), self._runtimes.of(state.local)
        self._watch.start(run, check, runtime, now - state.up_since, reported if same and reported else Health())

    def _watch_set_up(self, guest: GuestFacts, now: float) -> None:
        state = self._state
        if not has_set_up(state.local.spec) or guest.state not in ("running", "paused") or state.up_since is None:
            self._set_up_watch.stop()
        elif guest.process is not None:  # a container image's init starts it once it has taken what it was given
            self._set_up_watch.finish()
        elif guest.ready:
            reported, self._reported_set_up = self._reported_set_up, SetUp()
            same = guest.started_at == state.local.report.started_at
            run, runtime = (guest.pid, guest.started_at), self._runtimes.of(state.local)
            self._set_up_watch.start(run, runtime, now - state.up_since, reported if same else SetUp())

    def _note_end(self, guest: GuestFacts, now: float) -> None:
        state = self._state
        if state.up_since is not None and now - state.up_since >= plans.SETTLED_SECONDS:
            state.ended_in_a_row = 0
        state.ended_in_a_row += 1
        state.restart_at = now + plans.pause_after(state.ended_in_a_row)
        reason = state.checkpoint.ended
        message = state.unwell or guest.message or f"the workload ended on its own ({reason})"
        type_: EventType = "Normal" if reason in plans.GOOD_ENDS else "Warning"
        self._reporter.put_event(state.local.spec.workload, type_, "GuestEnded", message)
