"""Makes an event whenever a function's schedule is due, at one gateway of the fabric: once for each time, also when another gateway
goes on, since the time of the last run is kept with the event. All runs that were missed while no gateway ran are replaced by one
event at most."""

from __future__ import annotations

import datetime
import hashlib
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import PreconditionFailed
from weft.contracts.wakeup import Wake
from weft.gateway.function_events.queue import Event, EventQueue
from weft.gateway.function_events.schedule_state import LEASE_SECONDS, Fired, Key, ScheduleState
from weft.informer.view import View
from weft.kinds.function import FunctionSpec, Schedule
from weft.objects.errors import StoreUnavailable, Unavailable
from weft.objects.schedule import next_run

log = logging.getLogger("weft.gateway")
LATE_SECONDS = 60.0
RENEW_SECONDS = LEASE_SECONDS / 4
TAKE_OVER_SECONDS = 10.0
_SPACE = uuid.UUID("6f1f4a7e-55b0-4d0e-9d0b-5d7b7b1f7c11")


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
        queue: EventQueue,
        view: View,
        is_synced: Callable[[], bool],
        stir: Callable[[str, str], None],
        clock: Clock,
    ) -> None:
        self._fired, self._queue = fired, queue
        self._view, self._is_synced, self._stir, self._clock = view, is_synced, stir, clock
        self._wake = Wake(clock)
        self._stale = True
        self._entries: dict[Key, ScheduleEntry] = {}
        self._last: dict[Key, Fired] = {}
        self._fence = 0  # under which ``_last`` was read
        self._taken_at = 0.0
        self._due: dict[Key, float] = {}

    def changed(self) -> None:
        """Functions have changed."""
        self._stale = True
        self._wake.ring()

    async def run(self) -> None:
        """Fire due schedules while this gateway leads, for ever; at the end another one may lead."""
        try:
            await self._fire_for_ever()
        finally:
            with suppress(StoreUnavailable):
                await self._fired.give_back()

    async def _fire_for_ever(self) -> None:
        while True:
            wait = RENEW_SECONDS
            try:
                if self._is_synced() and (self._last or self._has_any()):
                    wait = await self._lead()
            except PreconditionFailed as problem:
                log.warning("schedules are read again: %s", problem.message)
                self._fence, wait = 0, 0.0 if problem.current_revision is not None else RENEW_SECONDS
            except Unavailable as problem:
                log.warning("schedules: %s", problem.message)
                self._fence = 0
            await self._wake.wait(wait)

    async def _lead(self) -> float:
        """Fire due schedules, if no other gateway does; how long until it is time again."""
        fence = await self._fired.lead()
        if not fence:
            self._fence = 0
            return RENEW_SECONDS
        if fence != self._fence:
            self._last = await self._fired.known()
            self._fence, self._stale, self._taken_at = fence, True, 0.0
        now = self._clock.now()
        if abs(now - self._taken_at) >= TAKE_OVER_SECONDS:
            await self._take_over()
            self._taken_at = now
        return await self._fire_due(now)

    async def _take_over(self) -> None:
        """Queue the events that this gateway must run and hasn't in its queue."""
        for event in await self._fired.take_over():
            if await self._queue.is_dead(event.id):
                await self._fired.done(event.id)
            elif await self._queue.add([event]):
                self._stir(event.project, event.name)

    async def _fire_due(self, now: float) -> float:
        """Fire due schedules; how long until the next."""
        if self._stale:
            self._stale = False
            await self._read(now)
        for key in [key for key, due in self._due.items() if due <= now]:
            await self._fire(key, self._due[key], now)
        return min([RENEW_SECONDS, *(due - now for due in self._due.values())])

    def _has_any(self) -> bool:
        return any(item.spec(FunctionSpec).schedule for item in self._view.of_kind("function").values())

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
        await self._fired.forget(gone)
        for key in gone:
            del self._last[key]
        for key in found.keys() - self._last.keys():
            self._last[key] = await self._fired.begin(key, now)
        self._entries = found
        self._due = {key: self._next(entry, self._last[key].last) for key, entry in found.items()}

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
        self._last[key] = await self._fired.fire(event, key, last, self._last[key])
        self._due[key] = self._next(entry, last)
        await self._queue.add([event])
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
