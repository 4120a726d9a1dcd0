"""Devices in this process, for tests and for trying out: what is written to one is what it reports from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from weft.contracts.clock import Clock
from weft.contracts.device import AnnouncedDevice, Listener, Thing, Value
from weft.objects.errors import NotFound, TimedOut, Unavailable

MOST_FOUND = 500


class FakeDriver:
    """``report``, ``announce``, ``cut`` and ``mend`` are the devices' side."""

    protocol = "fake"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listener: Listener | None = None
        self._things: dict[str, Thing] = {}
        self._values: dict[str, dict[str, Value]] = {}
        self._found: dict[str, AnnouncedDevice] = {}
        self._problem = ""
        self._done: set[str] = set()

    async def probe(self) -> str:
        return self._problem

    async def discover(self) -> list[AnnouncedDevice]:
        return list(self._found.values())

    async def connect(self, thing: Thing) -> None:
        self._things[thing.uid] = thing

    async def disconnect(self, uid: str) -> None:
        self._things.pop(uid, None)

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        self._check(uid)
        values = self._values.get(uid, {})
        return {name: values[name] for name in names if name in values}

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        if seconds <= 0:
            raise TimedOut("its time is up")
        self._check(uid)
        if id in self._done:
            return
        self._done.add(id)
        asyncio.get_running_loop().call_soon(self.report, uid, dict(values))

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        listener.note_line(self._problem)

    async def close(self) -> None:
        self._listener = None

    def report(self, uid: str, values: Mapping[str, Value]) -> None:
        self._values.setdefault(uid, {}).update(values)
        if self._listener is not None and uid in self._things and not self._problem:
            self._listener.note_values(uid, values)

    def announce(self, found: AnnouncedDevice) -> None:
        if found.address in self._found or len(self._found) < MOST_FOUND:
            self._found[found.address] = found
        elif self._listener is not None:
            self._listener.note_refused("", "found")

    def cut(self, problem: str = "the line is cut") -> None:
        self._problem = problem
        if self._listener is not None:
            self._listener.note_line(problem)

    def mend(self) -> None:
        self.cut("")

    def _check(self, uid: str) -> None:
        if uid not in self._things:
            raise NotFound("the device isn't connected to its driver")
        if self._problem:
            raise Unavailable(self._problem)
