"""The device driver contract: what a gateway of devices asks of a protocol. One driver serves all devices of its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec

Value: TypeAlias = bool | int | float | str


class Thing(msgspec.Struct, frozen=True):
    """A device as its driver knows it. ``hrefs``: where each property is, in the driver's own words. ``poll_seconds``: how often a
    driver that asks shall do so; 0: as it chooses."""

    uid: str
    project: str
    name: str
    address: str = ""
    hrefs: dict[str, str] = {}
    poll_seconds: float = 0.0


class AnnouncedDevice(msgspec.Struct, frozen=True):
    """A device that announced itself; nobody has approved it. ``address`` is its identity within the protocol."""

    protocol: str
    address: str
    name: str
    manufacturer: str = ""
    model: str = ""
    facts: dict[str, str] = {}


class Listener(Protocol):
    """Gets what devices say, in the driver's event loop. What comes is checked for size and form, never against a model."""

    def note_values(self, uid: str, values: Mapping[str, Value]) -> None: ...

    def note_event(self, uid: str, event: Mapping[str, Value]) -> None: ...

    def note_refused(self, uid: str, reason: str, name: str = "") -> None:
        """Something of device ``uid`` ("" when it isn't known which) was no message: ``reason`` is one of few words. With ``name``
        it was the member of that name, and the rest of the message has been noted before."""

    def note_reach(self, uid: str, problem: str) -> None:
        """Whether a device can be reached: "" if it can, else why not. Drivers whose devices connect to them don't call it."""

    def note_line(self, problem: str) -> None:
        """The way to the devices works again (""), or why it doesn't."""


class DeviceDriver(Protocol):
    protocol: str

    async def probe(self) -> str:
        """Why no device can be reached now; "" when they can."""

    async def discover(self) -> list[AnnouncedDevice]:
        """Find what has announced itself so far, at most 500 (the rest is refused as "found" to the listener)."""

    async def connect(self, thing: Thing) -> None:
        """Serve the device from now on; again with other settings is fine."""

    async def disconnect(self, uid: str) -> None:
        """Absent is fine."""

    async def read(self, uid: str, names: Sequence[str]) -> dict[str, Value]:
        """The device's values of now, those that it has. Raises NotFound (not connected), Unavailable (no answer in time,
        or its address is refused)."""

    async def write(self, uid: str, id: str, values: Mapping[str, Value], seconds: float) -> None:
        """Hand over a command that the device must not get later than ``seconds`` from now; ``id`` is the same when it is repeated.
        Returns when it was handed over, which doesn't say that the device obeyed. Raises NotFound, Unavailable, TimedOut, and
        InvalidInput for a value that the protocol can't carry."""

    def observe(self, listener: Listener) -> None:
        """Begin: the listener hears what connected devices say, across lost connections. A driver that asks tells what it read
        each time, also where nothing changed."""

    async def close(self) -> None: ...
