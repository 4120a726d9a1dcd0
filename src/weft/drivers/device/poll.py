"""Asks devices again and again, each in a task of its own, and tells a listener what they say and whether they can be reached.

A device that doesn't answer is asked with growing pauses, and holds up no other one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from weft.contracts.clock import Clock
from weft.contracts.device import Listener, Thing, Value
from weft.objects.errors import WeftError

POLL_SECONDS = 10.0  # where neither device nor model says anything
LEAST_SECONDS = 0.05
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
log = logging.getLogger("weft.edge.poll")
NOT_YET = "it hasn't answered yet"

Read = Callable[[Thing], Awaitable[Mapping[str, Value]]]


class Poller:
    """``read`` gives a device's values of now. It raises WeftError for what keeps the device from answering."""

    def __init__(self, read: Read, clock: Clock, poll_seconds: float = POLL_SECONDS) -> None:
        self._read, self._clock, self._poll_seconds = read, clock, poll_seconds
        self._listener: Listener | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._things: dict[str, Thing] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._problems: dict[str, str] = {}
        self._refused: dict[str, list[tuple[str, str]]] = {}  # reasons and names, of devices that are being asked
        self._line: str | None = None

    def put(self, thing: Thing) -> None:
        if self._things.get(thing.uid) == thing:
            return
        self.remove(thing.uid)
        self._things[thing.uid] = thing
        self._problems[thing.uid] = NOT_YET
        self._wakes[thing.uid] = asyncio.Event()
        if self._listener is not None:
            self._begin(thing.uid)

    def remove(self, uid: str) -> None:
        self._things.pop(uid, None)
        self._problems.pop(uid, None)
        self._wakes.pop(uid, None)
        self._refused.pop(uid, None)
        if (task := self._tasks.pop(uid, None)) is not None:
            task.cancel()

    def find(self, uid: str) -> Thing | None:
        return self._things.get(uid)

    def ask_now(self, uid: str) -> None:
        """Something was written: it shall show soon."""
        if (wake := self._wakes.get(uid)) is not None:
            wake.set()

    def note_refused(self, uid: str, reason: str, name: str) -> None:
        """A value isn't one. While the device is being asked the listener hears it after the others of the same time."""
        if (refused := self._refused.get(uid)) is not None:
            refused.append((reason, name))
        elif self._listener is not None:
            self._listener.note_refused(uid, reason, name)

    def find_problem(self) -> str:
        """Why no device can be reached; "" when one can, or there is none."""
        problems = list(self._problems.values())
        return problems[0] if problems and all(problems) else ""

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        for uid in self._things:
            if uid not in self._tasks:
                self._begin(uid)
        if not self._things:
            self._note_line()

    async def close(self) -> None:
        self._listener = None
        tasks = list(self._tasks.values())
        for uid in list(self._things):
            self.remove(uid)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, uid: str) -> None:
        self._tasks[uid] = asyncio.create_task(self._keep(self._things[uid], self._wakes[uid]))

    async def _keep(self, thing: Thing, wake: asyncio.Event) -> None:
        poll, failures = max(LEAST_SECONDS, thing.poll_seconds or self._poll_seconds), 0
        while True:
            began = self._clock.elapsed()
            wake.clear()
            refused = self._refused[thing.uid] = []
            try:
                values = await self._ask(thing)
            except WeftError as problem:
                failures += 1
                pause = max(poll, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10)))
                self._note(thing.uid, problem.message)
            except Exception as failure:  # of a package that met something unexpected: one device, not all
                log.exception("a device's driver failed")
                failures += 1
                pause = max(poll, LONGEST_PAUSE_SECONDS)
                self._note(thing.uid, f"its driver failed: {type(failure).__name__}; the gateway's log has more")
            else:
                failures, pause = 0, poll
                self._note(thing.uid, "")
                if self._listener is not None:
                    self._listener.note_values(thing.uid, values)
            self._refused.pop(thing.uid, None)
            for reason, name in refused:
                self.note_refused(thing.uid, reason, name)
            await self._wait(wake, max(LEAST_SECONDS, pause - (self._clock.elapsed() - began)))

    async def _ask(self, thing: Thing) -> Mapping[str, Value]:
        """Its values. Raises CancelledError also where a package swallows a cancellation: asyncio.wait_for of Python 3.11 does so
        when an answer comes in the same moment."""
        task = asyncio.current_task()
        assert task is not None
        try:
            return await self._read(thing)
        finally:
            if task.cancelling():
                raise asyncio.CancelledError

    async def _wait(self, wake: asyncio.Event, seconds: float) -> None:
        waking = asyncio.create_task(wake.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((waking, sleeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            sleeping.cancel()

    def _note(self, uid: str, problem: str) -> None:
        if uid not in self._problems:
            return
        self._problems[uid] = problem
        if self._listener is not None:
            self._listener.note_reach(uid, problem)
        self._note_line()

    def _note_line(self) -> None:
        line = self.find_problem()
        if line != self._line and self._listener is not None:
            self._line = line
            self._listener.note_line(line)
