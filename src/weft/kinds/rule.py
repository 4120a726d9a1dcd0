"""Rule: what a gateway does by itself when a condition over a device's values holds, without the server.

People write it; the gateways that have such devices evaluate it, and the API takes their counts; ``devices`` makes the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from weft.kinds.constraint import read_plain
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.device.affordance import Value, check_condition, check_desired, check_values
from weft.kinds.record import Access, Admission, Column, Display, Kind, Object, Reference
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels
from weft.objects.quantity import format_duration, format_time
from weft.objects.schema import field

MOST_LABELS = 8
MOST_ACTS = 8
MOST_SECONDS = 86400.0
MOST_WORDS = 200
MOST_SET_BYTES = 4096  # of the values that one act sets
MOST_NODES = 100  # whose counts are kept


class Selector(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Choice of devices: those with the model, if one is given, and all of the labels."""

    model: Annotated[str, field("Device model", name=True)] = ""
    labels: Annotated[dict[str, str], field("Labels that they have")] = {}


class Act(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Act of the gateway: it sets values of a device, or announces an event."""

    device: Annotated[
        str, field("Device behind the same gateway; unset: the one the condition holds for", name=True)
    ] = ""
    set: Annotated[dict[str, Value], field("Values that its properties get")] = {}
    expires_seconds: (
        Annotated[
            float, field("The values are worth nothing after so long", quantity="duration", ge=0.1, le=MOST_SECONDS)
        ]
        | None
    ) = None
    event: Annotated[str, field("Words of an event, for people", max_length=MOST_WORDS)] = ""


class RuleSpec(msgspec.Struct, kw_only=True):
    node: Annotated[str, field("Only devices behind this node's gateway; unset: behind any", name=True)] = ""
    devices: Annotated[Selector, field("Devices that it is about; without anything: all of the project")] = (
        msgspec.field(default_factory=Selector)
    )
    when: Annotated[
        str,
        field("Condition over a device's values, like temperature>8,power=on or temperature.mean60>7", max_length=1000),
    ]
    for_seconds: Annotated[float, field("How long it must hold first", quantity="duration", ge=0, le=MOST_SECONDS)] = (
        0.0
    )
    then: Annotated[list[Act], field("What is done then, in this order")]
    cooldown_seconds: Annotated[
        float, field("How long it does nothing again after that", quantity="duration", ge=0, le=MOST_SECONDS)
    ] = 60.0


class NodeCount(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """How often the rule fired at one gateway."""

    fired: int = 0
    last_fired: float | None = None
    problem: str = ""


class RuleReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    nodes: dict[str, NodeCount] = {}  # by name


class RuleStatus(msgspec.Struct, kw_only=True):
    fired: int = 0
    last_fired: float | None = None  # seconds since 1970
    problem: str = ""


def describe_act(act: Act) -> str:
    """``sets on=true of device/fan-1``"""
    if act.event:
        return f"says: {act.event}"
    values = ", ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in act.set.items())
    return f"sets {values[:MOST_WORDS]} of {f'device/{act.device}' if act.device else 'the device itself'}"


def check_rule(spec: RuleSpec) -> None:
    """Raises InvalidInput."""
    read_plain(spec.when, "spec.when")
    check_labels(spec.devices.labels, "spec.devices.labels")
    if len(spec.devices.labels) > MOST_LABELS:
        raise InvalidInput(
            f"spec.devices.labels: {len(spec.devices.labels)} labels",
            field="spec.devices.labels",
            hint=f"give at most {MOST_LABELS}",
        )
    if not 1 <= len(spec.then) <= MOST_ACTS:
        raise InvalidInput(
            f"spec.then: {len(spec.then)} entries",
            field="spec.then",
            hint=f"give 1 to {MOST_ACTS}, like {{set: {{alarm: true}}}} or {{event: it is warm}}",
        )
    for at, act in enumerate(spec.then):
        where = f"spec.then[{at}]"
        if bool(act.set) == bool(act.event):
            raise InvalidInput(
                f"{where}: it has {'both' if act.set else 'neither'} of set and event",
                field=where,
                hint="give one of them",
            )
        if act.event and (act.device or act.expires_seconds is not None or not act.event.isprintable()):
            raise InvalidInput(
                f"{where}.event: it is one line of text, without device and expires_seconds",
                field=f"{where}.event",
                hint="give the event alone",
            )
        check_values(act.set, f"{where}.set", MOST_SET_BYTES)


def _agree(spec: RuleSpec, models: Mapping[str, DeviceModelSpec]) -> None:
    """The condition fits the device model, where one is named, and so does what is set of such a device itself."""
    model = models.get(spec.devices.model)
    if model is None:
        return
    check_condition(spec.when, model.properties, "spec.when")
    for at, act in enumerate(spec.then):
        if act.set and not act.device:  # another device may be of another model
            check_desired(model.properties, act.set, f"spec.then[{at}].set")


def _about(obj: Object) -> str:
    labels = [f"{name}={value}" for name, value in sorted((dig(obj, "spec.devices.labels") or {}).items())]
    return ", ".join([*filter(None, [dig(obj, "spec.devices.model", "")]), *labels]) or "all"


def _last(obj: Object) -> str:
    at = dig(obj, "status.last_fired")
    return "never" if at is None else format_time(at)


RULE = Kind(
    name="rule",
    plural="rules",
    title="rule",
    summary="What a gateway does on its own when a condition over a device's values holds",
    spec=RuleSpec,
    status=RuleStatus,
    report=RuleReport,
    references=(
        Reference("node", "spec.node", lambda spec: [spec.node] if spec.node else [], blocks=False),
        Reference(
            "devicemodel",
            "spec.devices.model",
            lambda spec: [spec.devices.model] if spec.devices.model else [],
            agree=_agree,
            blocks=False,
        ),
    ),
    in_backups="kept",
    access=Access(readers="project", status_writer="devices", node_reads="serving"),
    admission=Admission(check=check_rule),
    display=Display(
        topic="Devices",
        columns=(
            NAME,
            Column("WHEN", text("spec.when"), flexible=True, keep=True),
            Column("DEVICES", _about, flexible=True),
            Column("FOR", lambda obj: format_duration(dig(obj, "spec.for_seconds", 0.0)), align="right", wide=True),
            Column("FIRED", text("status.fired", "0"), align="right"),
            Column("LAST", _last),
            AGE,
            Column("NOTE", text("status.problem", ""), flexible=True),
        ),
    ),
)
