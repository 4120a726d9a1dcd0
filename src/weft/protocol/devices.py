"""Reports of a node's gateway for devices to the server: ``POST /v1/nodes/{name}:devices``, with the node's certificate.

Everything has an age, not a time: the gateway's clock may be wrong. A report may come twice and in parts: each entry stands for
itself. Readings never come this way, only what changed beyond the deadband, at most once in ten seconds for a device.

What it reads are objects, by list and watch with the same certificate: ``devices`` of all projects gives those behind it,
``devicemodels`` those that these name, ``rules`` and ``models`` those of their projects. All but the first are picked when the list
or the watch begins, so it lists them again when a device names a model, or lies in a project, that it doesn't know. What a device's
``credentials`` names is opened by ``POST /v1/nodes/{name}:secrets`` with ``device``; a model's file is a blob by its digest.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MOST_DEVICES = 500  # in a report
MOST_FOUND = 100  # in a report
MOST_REPORT_BYTES = 3_000_000  # of all devices in a report, as JSON; the server takes no body of more than 4 MB
MOST_KEPT = 500  # found devices of a node that wait for approval; more are counted
MOST_BEHIND = 5000  # devices of a node, approved or not, beyond which no found one is kept
MOST_RULES = 200  # in a report
MOST_MODELS = 100  # in a report
MOST_VALUES = 100  # reported properties of a device
MOST_VALUE_BYTES = 1024  # of one value, as JSON
MOST_DEVICE_BYTES = 16 << 10  # of all values of a device
MOST_TEXT = 500
MOST_COMMANDS = 10
MOST_FACTS = 16
MOST_TRIGGERED = 200  # functions that topics of a gateway's devices invoke
MOST_MESSAGES = 100  # for a function together
MOST_MESSAGE_BYTES = 8 << 10
REFUSED_SECONDS = 86400.0  # a found device that people deleted isn't taken again for so long
CALM_SECONDS, BUSY_SECONDS = 1.0, 5.0  # what ``DevicesAnswer.wait_seconds`` is

Value = bool | int | float | str
Phase = Literal["Online", "Stale", "Offline"]
CommandOutcome = Literal["Delivered", "Confirmed", "Expired", "Refused"]


class ReportedCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """Outcome of a value that was sent to a device."""

    property: str
    outcome: CommandOutcome
    seconds_ago: float = 0.0
    message: str = ""


class ReportedDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole twin of one device, as far as the server has it."""

    uid: str
    phase: Phase
    seen_seconds_ago: float | None = None  # None: never
    reported: dict[str, Value] = {}
    drift: list[str] = []
    problem: str = ""
    commands: list[ReportedCommand] = []  # the last few, newest last


class FoundDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device that announced itself, or was found. Protocol and address say which one it is."""

    protocol: str
    address: str
    name: str = ""  # as it calls itself
    facts: dict[str, str] = {}  # like manufacturer and model


class FiredRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often a rule fired at this gateway, ever: so a report that comes twice counts once."""

    uid: str
    fired: int
    seconds_ago: float | None = None  # since it fired last
    problem: str = ""


class RanModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of a model at a gateway over all time. ``late``, ``nan`` and ``dead``: how often its fallback decided, and why."""

    uid: str
    file: str = ""  # SHA-256 of what it runs; "": nothing
    runs: int = 0
    late: int = 0
    nan: int = 0
    dead: int = 0
    p99_ms: float | None = None
    problem: str = ""


class DevicesReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """``POST /v1/nodes/{name}:devices``."""

    devices: list[ReportedDevice] = []
    found: list[FoundDevice] = []
    rules: list[FiredRule] = []
    models: list[RanModel] = []


class DevicesAnswer(msgspec.Struct, omit_defaults=True):
    """The answer to it."""

    refused: dict[str, str] = {}  # why, by uid of the device, rule or model: unknown, notYours, tooLarge
    not_kept: int = (
        0  # found devices that are more than the node or the project may have, or that people deleted of late
    )
    wait_seconds: float = CALM_SECONDS  # before the next report
    project: str = ""  # whose devices the gateway takes: the node's ``devices_project``
    topics: dict[str, list[str]] = {}  # that invoke functions of that project, by the function's name


class InvocationsInput(msgspec.Struct, omit_defaults=True):
    """``POST /v1/nodes/{name}:invocations``: a ticket to hand messages for ``function`` over to the functions' gateway, once.
    ``dropped``: messages for it that were dropped since the last time, ``too_large`` of them for their size."""

    function: str
    dropped: int = 0
    too_large: int = 0


class DeviceMessage(msgspec.Struct):
    """Message that invokes a function: its input is this as JSON. ``at``: unix seconds by the server's clock. A message that is
    handed over again has the same ``id``."""

    id: str
    topic: str
    project: str
    device: str
    at: float
    data: dict[str, Value]
