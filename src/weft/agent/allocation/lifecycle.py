"""How the runs of one guest go: that it came to life, ended, isn't well; and when it is to be started again after an end that
nobody asked for. Looks through the runtime; called by the allocation's worker, and by the guest's health check.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from weft.agent.allocation import plan as plans
from weft.agent.allocation.state import AllocationRecord
from weft.agent.workload.health import Health, HealthWatch
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestFacts
from weft.protocol.report import EventType


class Lifecycle:
    """``guest``: its facts by the last look; ``unwell``: why it is being ended, by its own health check; ``restart_at``: when it
    is to be started again (elapsed seconds). ``on_alive`` hears when it comes to life or ends, ``wake`` when to act."""

    def __init__(
        self,
        notes: AllocationRecord,
        runtimes: Runtimes,
        clock: Clock,
        on_event: Callable[[EventType, str, str], None],
        on_alive: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._notes, self._runtimes, self._clock = notes, runtimes, clock
        self._on_event, self._on_alive, self._wake = on_event, on_alive, wake
        self.alive = notes.memory.run in ("up", "starting")
        self.guest: GuestFacts | None = None
        self.unwell = ""
        self.restart_at = 0.0
        self._ended_in_a_row = 0
        self._up_since: float | None = None
        self._watch = HealthWatch(clock, self._on_health)
        told = notes.wanted.report
        self._told: Health | None = Health(told.health, 0, told.health_message)  # by an agent that was here before

    @property
    def health(self) -> Health:
        return self._watch.health

    @property
    def is_seen_alive(self) -> bool:
        return self.guest is not None and plans.is_alive(self.guest)

    async def look(self) -> GuestFacts:
        """The guest's facts now, and what follows from them put into the notes' memory."""
        notes = self._notes
        guest = self.guest = await self._runtimes.inspect(notes.wanted)
        before, notes.memory = notes.memory, plans.observe(notes.memory, guest, once=notes.wanted.spec.once)
        now = self._clock.elapsed()
        alive = plans.is_alive(guest)
        if alive and self._up_since is None:
            self._up_since = now
        if notes.memory.run == "ended" and before.run != "ended":
            if self.unwell:
                notes.memory = replace(notes.memory, ended=plans.UNHEALTHY)
            self._note_end(guest, now)
        self._watch_health(guest, now)
        if not alive:
            self._up_since = None
            self.unwell = ""
        self._tell_alive(alive)
        return guest

    def begin(self) -> None:
        """It was started."""
        self._up_since = self._clock.elapsed()

    def rest(self) -> None:
        """Nobody looks after it any more."""
        self._watch.rest()

    def _tell_alive(self, alive: bool) -> None:
        if alive != self.alive:
            self.alive = alive
            self._on_alive()

    def _watch_health(self, guest: GuestFacts, now: float) -> None:
        wanted = self._notes.wanted
        container = wanted.spec.container
        if container is None or container.health_check is None or guest.state != "running" or self._up_since is None:
            self._watch.rest()
            return
        told, self._told = self._told, None
        same = told is not None and guest.started_at == wanted.report.started_at
        self._watch.follow(
            wanted.id,
            (guest.pid, guest.started_at),
            container.health_check,
            self._runtimes.of(wanted),
            now - self._up_since,
            told if same and told is not None else Health(),
        )

    def _on_health(self) -> None:
        health, container = self._watch.health, self._notes.wanted.spec.container
        bad = health.state == "unhealthy"
        self._on_event("Warning" if bad else "Normal", health.state.capitalize(), health.message)
        if bad and container is not None and container.health_check is not None:
            self.unwell = health.message if container.health_check.on_unhealthy == "restart" else ""
        self._wake()

    def _note_end(self, guest: GuestFacts, now: float) -> None:
        if self._up_since is not None and now - self._up_since >= plans.SETTLED_SECONDS:
            self._ended_in_a_row = 0
        self._ended_in_a_row += 1
        self.restart_at = now + plans.pause_after(self._ended_in_a_row)
        reason = self._notes.memory.ended
        message = self.unwell or guest.message or f"the workload ended by itself ({reason})"
        self._on_event("Normal" if reason in plans.GOOD_ENDS else "Warning", "GuestEnded", message)
