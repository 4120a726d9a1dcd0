"""A driver that is loaded when the first device needs it: its packages take memory, and may not be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weft.contracts.device import AnnouncedDevice, DeviceDriver, Listener, Thing, Value
from weft.objects.errors import NotFound, Unavailable


class DeferredDriver:
    """``load`` makes the real one. It raises ImportError when a package is missing, which the extra ``edge`` brings. ``eager``: it
    is loaded at once, because it also finds devices that nobody knows."""

    def __init__(self, protocol: str, load: Callable[[], DeviceDriver], *, eager: bool = False) -> None:
        self.protocol, self._load, self._eager = protocol, load, eager
        self._real: DeviceDriver | None = None
        self._problem = ""
        self._listener: Listener | None = None

    async def probe(self) -> str:
        return await self._real.probe() if self._real is not None else self._problem

    async def discover(self) -> list[AnnouncedDevice]:
        return await self._real.discover() if self._real is not None else []

    async def connect(self, thing: Thing) -> None:
        self._start()
        if self._real is not None:
            await self._real.connect(thing)
        elif self._listener is not None:
            self._listener.note_reach(thing.uid, self._problem)

    async def disconnect(self, uid: str) -> None:
        if self._real is not None:
            await self._real.disconnect(uid)

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        return await self._find().read(uid, names)

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        await self._find().write(uid, id, values, seconds)

    def observe(self, listener: Listener) -> None:
        self._listener = listener
        if self._eager:
            self._start()
        if self._real is not None:
            self._real.observe(listener)
        else:
            listener.note_line(self._problem)

    async def close(self) -> None:
        if self._real is not None:
            await self._real.close()

    def _start(self) -> None:
        if self._real is not None or self._problem:
            return
        try:
            self._real = self._load()
        except ImportError as missing:
            lacks = f"{self.protocol} needs the Python package {missing.name}, which is missing"
            self._problem = f"{lacks}: pip install '.[edge]' in weft's clone"
            if self._listener is not None:
                self._listener.note_line(self._problem)
            return
        if self._listener is not None:
            self._real.observe(self._listener)

    def _find(self) -> DeviceDriver:
        if self._real is not None:
            return self._real
        if self._problem:
            raise Unavailable(self._problem)
        raise NotFound("the device isn't connected to its driver")
