"""What the gateway reads of DeviceModel and Device objects: the fields that it acts on. Unknown ones are a newer server's."""

from __future__ import annotations

import msgspec

from weft.contracts.device import Value

MOST_PROPERTIES = 100
MOST_WINDOWS = 16  # of one property
MEASURES = ("mean", "min", "max", "count", "last", "rate")


class Window(msgspec.Struct, frozen=True):
    """A tumbling window: ``seconds`` long; ``of`` names the measures that it gives."""

    seconds: int
    of: tuple[str, ...] = MEASURES


class Property(msgspec.Struct, frozen=True):
    """What values of a property may be. ``deadband``: a change of less isn't told to the server."""

    type: str = "number"
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[Value, ...] = ()
    max_length: int | None = None
    read_only: bool = False
    deadband: float | None = None
    windows: tuple[Window, ...] = ()
    href: str = ""


class Model(msgspec.Struct, frozen=True):
    properties: dict[str, Property] = {}
    stale_seconds: float = 60.0
    offline_seconds: float = 300.0


class Device(msgspec.Struct, frozen=True):
    """A device of this gateway. ``desired_until``: by property, Unix seconds by the server's clock; without it, it stays."""

    uid: str
    project: str
    name: str
    model: str = ""
    protocol: str = "mqtt"
    address: str = ""
    poll_seconds: float = 0.0
    credentials: str = ""
    labels: dict[str, str] = {}
    desired: dict[str, Value] = {}
    desired_until: dict[str, float] = {}
