"""Makes an event whenever a function's schedule is due: once for each time, also over restarts, since the time of the last run is
kept with the event. All runs that were missed while no gateway ran are replaced by one event at most."""

from __future__ import annotations

import datetime
import hashlib
import logging
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function_events.alarm import Alarm
from weft.gateway.function_events.queue import Event
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.informer.view import View
from weft.kinds.function import FunctionSpec, Schedule
from weft.objects.errors import Unavailable
from weft.objects.schedule import next_run

log = logging.getLogger("weft.gateway")
LATE_SECONDS = 60.0
LONGEST_SLEEP_SECONDS = 60.0  # somebody may set the machine's clock
_SPACE = uuid.UUID("6f1f4a7e-55b0-4d0e-9d0b-5d7b7b1f7c11")

Key = tuple[str, str]  # the function's uid, the entry's digest


class ScheduleEntry(msgspec.Struct, frozen=True):
    """One schedule of one function."""

    function: str
    project: str
    name: str
    schedule: Schedule

    @property
    def key(self) -> Key:
        return self.function, hashlib.sha256(msgspec.json.encode(self.schedule)).hexdigest()[:16]


class Schedules:
    """``view`` has the functions once ``is_synced``; ``stir`` is called for the function of each new event."""

    def __init__(
        self,
        fired: ScheduleState,
        view: View,
        is_synced: Callable[[], bool],
        stir: Callable[[str, str], None],
        clock: Clock,
    ) -> None:
        self._fired, self._view, self._is_synced, self._stir, self._clock = fired, view, is_synced, stir, clock
        self._alarm = Alarm(clock)
        self._stale = True
        self._entries: dict[Key, ScheduleEntry] = {}
        self._last: dict[Key, float] = {}
        self._due: dict[Key, float] = {}

    def changed(self) -> None:
        """Functions have changed."""
        self._stale = True
        self._alarm.ring()

    async def run(self) -> None:
        """Fire due schedules, for ever."""
        known: dict[Key, float] | None = None
        while True:
            try:
                if known is None:
                    known = self._last = await self._fired.known()
                wait = await self._fire_due() if self._is_synced() else 0.5
            except Unavailable as problem:
                log.warning("schedules: %s", problem.message)
                wait = 5.0
            await self._alarm.wait(wait)

    async def _fire_due(self) -> float:
        """Fire due schedules; how long until the next."""
        now = self._clock.now()
        if self._stale:
            self._stale = False
            await self._read(now)
        for key in [key for key, due in self._due.items() if due <= now]:
            await self._fire(key, self._due[key], now)
        return min([LONGEST_SLEEP_SECONDS, *(due - now for due in self._due.values())])

    async def _read(self, now: float) -> None:
        found = {}
        for item in self._view.of_kind("function").values():
            if item.deleting:
                continue
            envelope = item.envelope
            for schedule in item.spec(FunctionSpec).schedule:
                entry = ScheduleEntry(item.uid, envelope.project or "", envelope.name, schedule)
                found[entry.key] = entry
        gone = [key for key in self._last if key not in found]
        if gone:
            await self._fired.forget(gone)
            for key in gone:
                del self._last[key]
        for key in found.keys() - self._last.keys():
            await self._fired.begin(*key, now)
            self._last[key] = now
        self._entries = found
        self._due = {key: self._next(entry, self._last[key]) for key, entry in found.items()}

    async def _fire(self, key: Key, due: float, now: float) -> None:
        entry = self._entries[key]
        last = due if now - due <= LATE_SECONDS else now  # the other missed runs are left out
        event = Event(
            id=str(uuid.uuid5(_SPACE, f"{key[0]}/{key[1]}/{due:.0f}")),
            project=entry.project,
            name=entry.name,
            qualifier=entry.schedule.qualifier,
            payload=make_payload(entry.schedule, due),
            origin="schedule",
            accepted_at=now,
            due_at=now,
        )
        await self._fired.fire(event, *key, last)
        self._last[key] = last
        self._due[key] = self._next(entry, last)
        self._stir(entry.project, entry.name)

    def _next(self, entry: ScheduleEntry, after: float) -> float:
        try:
            return next_run(entry.schedule.cron, entry.schedule.zone, after)
        except Exception as problem:  # a schedule that can't be read any more must not delay the others
            log.error("function/%s, schedule %r: %s", entry.name, entry.schedule.cron, problem)
            return float("inf")


def make_payload(schedule: Schedule, due: float) -> bytes:
    """The function's payload: the schedule's own input, or the time."""
    if schedule.input is not None:
        return msgspec.json.encode(schedule.input)
    at = datetime.datetime.fromtimestamp(due, datetime.UTC)
    payload: dict[str, Any] = {
        "source": "weft.schedule",
        "time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "schedule": schedule.cron,
        "zone": schedule.zone,
    }
    return msgspec.json.encode(payload)
