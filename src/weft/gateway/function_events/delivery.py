"""Runs waiting events, function by function: one function's backlog doesn't delay the events of others.

An event leaves the queue after it ran well, or failed for good; after a kill at any moment this starts again with the queue, so
each event runs at least once. When a function can accept no more (throttled, no capacity, not ready) its lane pauses and
narrows; its events stay as they are, and keep their retries.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol

from weft.contracts.clock import Clock
from weft.contracts.wakeup import Wake
from weft.gateway.function.definition.names import make_arn
from weft.gateway.function.invocation.call import Call, Dispatches, InvocationOutcome
from weft.gateway.function_events.dead_letters import NEWEST, DeadLetters, LetterPlace
from weft.gateway.function_events.queue import Backlog, Event, EventQueue
from weft.gateway.function_events.retry import (
    MOST_ERROR,
    DeadLetter,
    EventDone,
    PauseFunction,
    Retry,
    Terms,
    Verdict,
    is_too_old,
    judge,
    make_record,
    pause_seconds,
)
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.informer.view import View
from weft.kinds.function import FunctionSpec
from weft.objects.errors import Throttled, TooLarge, Unavailable, WeftError
from weft.objects.identity import new_uid, object_key

log = logging.getLogger("weft.gateway")
MOST_EVENT_BYTES = 256 * 1024
MOST_WAITING = 100_000  # events of one function
MOST_UNDER_WAY = 256  # of all functions
MOST_LOADED = 64
FIRST_WIDTH = 4
DEAD_KEPT_SECONDS = 14 * 86400.0
SWEEP_SECONDS = 3600.0
UNSURE_SECONDS = 0.2  # between looks whether events are this gateway's own

Key = tuple[str, str]


class Copier(Protocol):
    """Sees to it that another server's gateway has the events, too (``event_copies``)."""

    async def add(self, event: Event) -> None:
        """Accept an event; durable on return. Raises Unavailable."""

    def may_run(self) -> bool:
        """Whether the events are surely this gateway's own."""

    async def run(self, stir: Callable[[str, str, int], None]) -> None:
        """Work for ever; ``stir`` is called for events that join the queue."""


class _Lane:
    """One function's events. ``count``: about how many wait; ``width``: how many run at once."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self.width = FIRST_WIDTH
        self.pauses = 0  # in a row
        self.paused_until = 0.0
        self.reason = ("EventAgeExceeded", "the event waited too long")  # of the last pause
        self.under_way: dict[str, asyncio.Task[None]] = {}
        self.wake = Wake(clock)
        self.task: asyncio.Task[None] | None = None


class Deliveries:
    """``view`` has the functions; ``fired`` knows which events of schedules are this gateway's; ``copying`` has copies at another
    server, None at a gateway that is alone for good."""

    def __init__(
        self,
        queue: EventQueue,
        letters: DeadLetters,
        view: View,
        dispatcher: Dispatches,
        clock: Clock,
        fired: ScheduleState,
        draw: Callable[[], float] = random.random,
        copying: Copier | None = None,
    ) -> None:
        self._copying = copying
        self._queue, self._letters, self._view, self._dispatcher = queue, letters, view, dispatcher
        self._clock, self._draw, self._fired = clock, draw, fired
        self._lanes: dict[Key, _Lane] = {}
        self._free_slots = asyncio.Semaphore(MOST_UNDER_WAY)

    async def accept(self, call: Call) -> None:
        """Keep the event until it has run; durable when this returns. Raises TooLarge, Throttled, Unavailable."""
        if len(call.payload) > MOST_EVENT_BYTES:
            raise TooLarge(
                f"an event has at most {MOST_EVENT_BYTES} bytes; this one has {len(call.payload)}",
                hint="put it where the function can fetch it",
            )
        lane = self._lanes.get((call.project, call.name))
        if lane is not None and lane.count >= MOST_WAITING:
            raise Throttled(
                f"{lane.count} events of function/{call.name} wait already: no more are accepted",
                hint="wait until some have run, or raise max_concurrent of the function",
                retry_after_seconds=10.0,
            )
        now = self._clock.now()
        event = Event(
            id=call.id,
            project=call.project,
            name=call.name,
            qualifier=call.qualifier,
            payload=call.payload,
            context=call.client_context,
            origin="device" if call.node else "invoke",
            node=call.node,
            accepted_at=now,
            due_at=now,
        )
        if self._copying is None:
            await self._queue.add([event])
        else:
            await self._copying.add(event)
        self.stir(call.project, call.name)

    def stir(self, project: str, name: str, count: int = 1) -> None:
        """``count`` more events wait for a function now."""
        lane = self._lanes.get((project, name))
        if lane is None:
            lane = self._lanes[project, name] = _Lane(self._clock)
        lane.count += count
        lane.wake.ring()
        if lane.task is None:
            lane.task = asyncio.ensure_future(self._serve(project, name, lane))

    async def run(self) -> None:
        """Run the events of the queue, and delete old dead letters, for ever."""
        copying = None if self._copying is None else asyncio.ensure_future(self._copying.run(self.stir))
        try:
            for standing in await self._find_standings():
                self.stir(standing.project, standing.name, standing.count)
            while True:
                await self._clock.sleep(SWEEP_SECONDS)
                try:
                    dropped = await self._letters.drop_old(self._clock.now() - DEAD_KEPT_SECONDS)
                except Unavailable as problem:
                    log.warning("dead letters: %s", problem.message)
                    continue
                if dropped:
                    log.warning("%d dead letters were older than 14 days and are gone", dropped)
        finally:
            tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
            tasks += [copying] if copying is not None else []
            self._lanes.clear()  # it may run again, and finds their events in the queue
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def dead(self, project: str, name: str, most: int, after: LetterPlace = NEWEST) -> list[Event]:
        return await self._letters.dead(project, name, most, after)

    async def find_dead(self, id: str) -> float | None:
        return await self._letters.find_dead(id)

    async def redrive(self, project: str, name: str) -> int:
        """Run all of a function's dead letters again; how many."""
        count = await self._letters.redrive(project, name, self._clock.now())
        if count:
            self.stir(project, name, count)
        return count

    async def purge(self, project: str, name: str) -> int:
        return await self._letters.purge(project, name)

    async def _find_standings(self) -> list[Backlog]:
        while True:
            try:
                return await self._queue.standings()
            except Unavailable as problem:
                log.warning("events: %s", problem.message)
                await self._clock.sleep(5.0)

    async def _serve(self, project: str, name: str, lane: _Lane) -> None:
        """Run all events of a function."""
        try:
            while True:
                wait = await self._begin_due(project, name, lane)
                if wait is None:
                    del self._lanes[project, name]
                    return
                await lane.wake.wait(wait)
        finally:
            for task in lane.under_way.values():
                task.cancel()
            await asyncio.gather(*lane.under_way.values(), return_exceptions=True)

    async def _begin_due(self, project: str, name: str, lane: _Lane) -> float | None:
        """Begin due events while slots are free; how long to wait then at most, None if no event is left."""
        now = self._clock.now()
        if now < lane.paused_until:
            return lane.paused_until - now
        if self._copying is not None and not self._copying.may_run():
            return UNSURE_SECONDS
        known = lane.count
        try:
            found = await self._queue.due(project, name, MOST_LOADED + len(lane.under_way))
        except Unavailable as problem:
            log.warning("events of function/%s: %s", name, problem.message)
            return 5.0
        if not found and not lane.under_way and known == lane.count:
            return None
        for event in found:
            if event.id in lane.under_way:
                continue
            if event.due_at > now:
                return event.due_at - now
            if len(lane.under_way) >= lane.width:
                return 60.0  # an event that ends rings
            lane.under_way[event.id] = asyncio.ensure_future(self._run_one(event, lane))
        return 60.0 if len(found) < MOST_LOADED else 0.0

    async def _run_one(self, event: Event, lane: _Lane) -> None:
        try:
            if event.origin == "schedule" and not await self._fired.has(event.id):
                await self._queue.done(event.id)  # another gateway has it, or it is done
                lane.count -= 1
                return
            terms, most = self._terms_of(event)
            if is_too_old(event, terms, self._clock.now()):
                error_type, error = (event.error_type, event.error) if event.error_type else lane.reason
                verdict: Verdict = DeadLetter(event.tries, error_type, error, "EventAgeExceeded")
            else:
                async with self._free_slots:
                    result = await self._invoke(event)
                verdict = judge(event, result, terms, self._clock.now(), self._draw)
            self._pace(lane, verdict, most)
            await self._settle(event, verdict, terms, lane)
        except Unavailable as problem:  # the disk; the event is still in the queue
            log.warning("event %s of function/%s: %s", event.id, event.name, problem.message)
            lane.paused_until = self._clock.now() + 5.0
        except Exception:  # a defect that meets one event must not end its lane
            log.exception("event %s of function/%s", event.id, event.name)
            lane.paused_until = self._clock.now() + 60.0
        finally:
            lane.under_way.pop(event.id, None)
            lane.wake.ring()

    async def _invoke(self, event: Event) -> InvocationOutcome | WeftError:
        call = Call(
            id=event.id,
            project=event.project,
            name=event.name,
            qualifier=event.qualifier,
            payload=event.payload,
            client_context=event.context,
            node=event.node,
        )
        try:
            return await self._dispatcher.invoke(call)
        except WeftError as problem:
            return problem

    def _pace(self, lane: _Lane, verdict: Verdict, most: int) -> None:
        if isinstance(verdict, PauseFunction):
            lane.reason = (verdict.reason, verdict.why[:MOST_ERROR])
            now = self._clock.now()
            if now >= lane.paused_until:  # of those under way together only the first narrows it
                lane.pauses += 1
                lane.width = max(1, lane.width // 2)
                lane.paused_until = now + pause_seconds(lane.pauses, self._draw)
                log.info("events wait %.1f s: %s", lane.paused_until - now, verdict.why)
        elif isinstance(verdict, (EventDone, Retry)):
            lane.pauses = 0
            lane.width = max(1, min(most, lane.width + 1))

    async def _settle(self, event: Event, verdict: Verdict, terms: Terms, lane: _Lane) -> None:
        match verdict:
            case EventDone():
                if event.origin == "schedule":  # first: what is gone there isn't run again from the queue
                    await self._fired.done(event.id)
                await self._queue.done(event.id)
                lane.count -= 1
            case Retry(tries=tries, due_at=due_at, error_type=error_type, error=error):
                await self._queue.again(event.id, tries=tries, due_at=due_at, error_type=error_type, error=error)
            case DeadLetter():
                await self._bury(event, verdict, terms)
                if event.origin == "schedule":
                    await self._fired.done(event.id)
                lane.count -= 1

    async def _bury(self, event: Event, dead: DeadLetter, terms: Terms) -> None:
        now = self._clock.now()
        heir = terms.dead_letter if event.origin != "deadletter" else ""
        log.warning(
            "event %s of function/%s failed for good: %s: %s", event.id, event.name, dead.error_type, dead.error[:200]
        )
        if heir and self._view.get(object_key("function", event.project, heir)) is not None:
            payload = make_record(event, dead, make_arn(event.project, event.name, event.qualifier), now)
            letter = Event(
                id=new_uid(),
                project=event.project,
                name=heir,
                payload=payload,
                origin="deadletter",
                accepted_at=now,
                due_at=now,
            )
            await self._queue.hand_over(event.id, letter)
            self.stir(event.project, heir)
            return
        await self._queue.bury(event.id, tries=dead.tries, at=now, error_type=dead.error_type, error=dead.error)

    def _terms_of(self, event: Event) -> tuple[Terms, int]:
        """Its function's terms, and how many may run at once."""
        item = self._view.get(object_key("function", event.project, event.name))
        if item is None:
            return Terms(), 1
        spec = item.spec(FunctionSpec)
        return Terms(spec.retries, spec.max_age, spec.dead_letter or ""), spec.max_concurrent
