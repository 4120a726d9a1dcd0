"""Fields of DeviceModel and Device objects on which the gateway acts. Unknown ones are a newer server's."""

from __future__ import annotations

import sys
from functools import cached_property

import msgspec

from weft.contracts.device import Value

MOST_PROPERTIES = 100
MOST_WINDOWS = 16  # of one property
MEASURES = ("mean", "min", "max", "count", "last", "rate")


class SamplingWindow(msgspec.Struct, frozen=True):
    """A tumbling window: ``seconds`` long; ``of`` names the measures that it gives."""

    seconds: int
    of: tuple[str, ...] = MEASURES


class Property(msgspec.Struct, frozen=True):
    """Limits of a property's values. ``deadband``: a smaller change isn't sent to the server."""

    type: str = "number"
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[Value, ...] = ()
    max_length: int | None = None
    read_only: bool = False
    deadband: float | None = None
    windows: tuple[SamplingWindow, ...] = ()
    href: str = ""


class Intake:
    """How values of a property are taken. Most are numbers or truths within bounds, and known to be right by comparing them; about
    all others ``check_value`` decides. ``plain``: the type of the former, None: there are none."""

    __slots__ = ("known", "least", "most", "plain")

    def __init__(self, known: Property) -> None:
        self.known = known
        self.plain: type | None = None if known.enum else {"number": float, "boolean": bool}.get(known.type)
        # Neither an infinite number nor NaN lies between two finite ones.
        self.least = -sys.float_info.max if known.minimum is None else max(-sys.float_info.max, known.minimum)
        self.most = sys.float_info.max if known.maximum is None else min(sys.float_info.max, known.maximum)


class Model(msgspec.Struct, frozen=True, dict=True):
    properties: dict[str, Property] = {}
    stale_seconds: float = 60.0
    offline_seconds: float = 300.0

    @cached_property
    def intakes(self) -> dict[str, Intake]:
        """Intakes by property; made once for all devices of the model."""
        return {name: Intake(one) for name, one in self.properties.items()}


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
