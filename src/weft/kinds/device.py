"""Device: a thing behind a node's gateway, its twin: what people desire of it, what it reported last, and where both differ.

People make it, or its gateway finds it; it does nothing until it is approved. Readings never come here: the report is coarse. The
API takes the gateway's report; the controller ``devices`` makes the status of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.device_model import DEVICE_MODEL, DeviceModelSpec
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.device.affordance import Value, check_desired, check_values, no_property
from weft.kinds.node import find_devices_project
from weft.kinds.parts.goal import reaches
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Index,
    Kind,
    Lifetime,
    Object,
    Reference,
    Stored,
    Verb,
    keys_of,
)
from weft.objects.envelope import take_from_spec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.quantity import format_duration, format_time
from weft.objects.schema import field, words

MOST_POLL_SECONDS = 86400.0
MOST_WORDS = 200  # of an event
MOST_EXPIRES_SECONDS = 31 * 86400.0
MOST_DESIRED_BYTES = 16 << 10
MOST_COMMANDS = 10
MOST_FACTS = 16
FOUND, ONLINE, STALE, OFFLINE, UNKNOWN = "Found", "Online", "Stale", "Offline", "Unknown"
CommandOutcome = Literal["Delivered", "Confirmed", "Expired", "Refused"]


class DeviceSpec(msgspec.Struct, kw_only=True):
    node: Annotated[str, field("Node whose gateway it is behind", name=True)]
    model: Annotated[str, field("Its device model; unset: not known yet", name=True)] = ""
    protocol: Annotated[str, field("What it speaks, as the gateway's drivers are called", max_length=32)] = "mqtt"
    address: Annotated[str, field("Where it is, in the driver's own words", max_length=200)] = ""
    credentials: Annotated[str, field("Secret with its password, and what else its driver needs", name=True)] = ""
    poll_seconds: Annotated[
        float,
        field("How often it is asked; 0: as its driver chooses", quantity="duration", ge=0, le=MOST_POLL_SECONDS),
    ] = 0.0
    approved: Annotated[bool, field("Whether it is used; one that was found waits for this")] = True
    desired: Annotated[dict[str, Value], field("Values that its properties shall have")] = {}


class DeviceActions(msgspec.Struct, kw_only=True):
    desired_until: Annotated[dict[str, float], field("When a desired value ends, by property")] = {}


class CommandResult(msgspec.Struct, kw_only=True, frozen=True):
    """Outcome of a value that was sent to the device."""

    property: str
    outcome: CommandOutcome
    at: float = 0.0  # seconds since 1970, by the server's clock
    message: str = ""


class DeviceReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The newest report of its gateway, with ages as times of the server's clock."""

    phase: Annotated[str, words(ONLINE, STALE, OFFLINE)] = OFFLINE
    seen_at: float | None = None  # None: never
    reported: dict[str, Value] = {}
    drift: list[str] = []
    problem: str = ""
    commands: list[CommandResult] = []  # newest last
    node_uid: str = ""  # whose gateway said it
    found: dict[str, str] = {}  # what is known of it by itself; of one that was found


class DeviceStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words(FOUND, ONLINE, STALE, OFFLINE, UNKNOWN)] = OFFLINE
    last_seen: float | None = None  # seconds since 1970; None: never
    reported: dict[str, Value] = {}
    drift: list[str] = []  # properties whose desired value isn't the reported one
    gateway: str = ""  # the node
    problem: str = ""
    found: dict[str, str] = {}
    commands: list[CommandResult] = []


def check_device(spec: DeviceSpec) -> None:
    """Raises InvalidInput."""
    if not spec.protocol.replace("-", "").isalnum():
        raise InvalidInput(
            f"spec.protocol: {spec.protocol[:32]!r} is not a protocol", field="spec.protocol", hint="write like mqtt"
        )
    if not spec.address.isprintable():
        raise InvalidInput("spec.address has control characters", field="spec.address", hint="remove them")
    check_values(spec.desired, "spec.desired", MOST_DESIRED_BYTES)
    if spec.desired and not spec.model:
        raise InvalidInput(
            "spec.desired: the device has no model, so its values can't be checked",
            field="spec.desired",
            hint="weft device approve NAME --model MODEL",
        )


def _end_times(old: DeviceSpec, new: DeviceSpec, asked: DeviceActions) -> DeviceActions:
    """The time of a desired value ends with the value: another one that a manifest gives has none."""
    kept = {name for name, value in new.desired.items() if _is_same(old.desired.get(name), value)}
    return DeviceActions(desired_until={name: at for name, at in asked.desired_until.items() if name in kept})


def _is_same(before: Value | None, after: Value) -> bool:
    return type(before) is type(after) and before == after


def _agree(spec: DeviceSpec, models: Mapping[str, DeviceModelSpec]) -> None:
    model = models.get(spec.model)
    if model is not None:
        check_desired(model.properties, spec.desired, "spec.desired")


class SetInput(msgspec.Struct, kw_only=True):
    desired: Annotated[dict[str, Value | None], field("Value by property; null takes the desired value away")]
    expires_seconds: (
        Annotated[
            float,
            field("After so long the values are desired no more", quantity="duration", ge=0.1, le=MOST_EXPIRES_SECONDS),
        ]
        | None
    ) = None


class ApproveInput(msgspec.Struct, kw_only=True):
    model: Annotated[str, field("Its device model; unset: as it is", name=True)] = ""


def _describe_set(given: SetInput) -> str:
    values = (
        f"{name} no longer desired" if value is None else f"{name}={msgspec.json.encode(value).decode()}"
        for name, value in given.desired.items()
    )
    until = f", for {format_duration(given.expires_seconds)}" if given.expires_seconds is not None else ""
    return f"{', '.join(values)[:MOST_WORDS]}{until}"


def _set(obj: Object, given: SetInput) -> dict[str, Any]:
    spec = obj["spec"]
    if not spec.get("approved", True):
        raise IllegalTransition(
            f"device/{obj['name']} was found, and isn't approved yet",
            reason="notApproved",
            hint=f"weft device approve {obj['name']} --model MODEL",
        )
    if not given.desired:
        raise InvalidInput("no value is given", field="input.desired", hint="write property=value")
    desired = dict(spec.get("desired") or {})
    known = dig(obj.get("others", {}).get(f"{DEVICE_MODEL.name}/{spec.get('model', '')}"), "spec.properties") or {}
    for name, value in given.desired.items():
        if value is None:
            if name not in desired and name not in known:
                raise no_property(list(known), name, "spec.desired")
            desired.pop(name, None)
            continue
        desired[name] = value
    return {**spec, "desired": desired}


def _set_times(obj: Object, given: SetInput) -> dict[str, Any]:
    kept = {name: at for name, at in obj["actions"]["desired_until"].items() if name not in given.desired}
    if given.expires_seconds is None:
        return {"desired_until": kept}
    end = obj["now"] + given.expires_seconds
    return {"desired_until": {**kept, **{name: end for name, value in given.desired.items() if value is not None}}}


def _approve(obj: Object, given: ApproveInput) -> dict[str, Any]:
    model = given.model or obj["spec"].get("model", "")
    if not model:
        raise InvalidInput(
            f"device/{obj['name']} has no model", field="input.model", hint="weft device approve NAME --model MODEL"
        )
    former = obj["spec"].get("model", "")
    if obj["spec"].get("approved", True) and former and model != former:
        raise IllegalTransition(
            f"device/{obj['name']} is approved already, as {former}",
            reason="approved",
            hint=f"to give it another model: weft device set {obj['name']} --model {model}",
        )
    return {**obj["spec"], "approved": True, "model": model}


DEVICES_BY_NODE = Index("devices by the name of their gateway's node")
DEVICES_BY_MODEL = Index("devices by model")
DEVICES_FOUND = Index("devices that wait for approval, by project")


def _found_in(item: Stored) -> Iterable[str]:
    return () if item.spec(DeviceSpec).approved else (item.envelope.project or "",)


def _model_of(item: Stored) -> Iterable[str]:
    model = item.spec(DeviceSpec).model
    return keys_of("devicemodel", item, [model] if model else [])


def _seen(obj: Object) -> str:
    at = dig(obj, "status.last_seen")
    return "never" if at is None else format_time(at)


def _values(obj: Object) -> str:
    found = dig(obj, "status.reported") or {}
    shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in sorted(found.items())}
    return ", ".join(f"{name}={value}" for name, value in shown.items()) or "–"  # as `weft device set` takes them


def _drift(obj: Object) -> str:
    return ", ".join(dig(obj, "status.drift") or []) or "–"


DEVICE = Kind(
    name="device",
    plural="devices",
    title="device",
    summary="A thing behind a node's gateway: what is desired of it, and what it reported",
    spec=DeviceSpec,
    actions=DeviceActions,
    status=DeviceStatus,
    report=DeviceReport,
    schema=2,
    upgrades=(take_from_spec(actions=DeviceActions),),
    indexes={
        DEVICES_BY_NODE: lambda item: (item.spec(DeviceSpec).node,),
        DEVICES_BY_MODEL: _model_of,
        DEVICES_FOUND: _found_in,
    },
    references=(
        Reference(
            "node",
            "spec.node",
            lambda spec: [spec.node] if spec.approved else [],
            blocks=False,
            projects=lambda node: [find_devices_project(node)],
            refused="node {name} takes no devices of project {project}; choose a node that does, or ask an administrator: "
            "weft node set {name} --devices-project {project}",
        ),
        Reference(
            "devicemodel", "spec.model", lambda spec: [spec.model] if spec.model else [], agree=_agree, blocks=False
        ),
        Reference(
            "secret", "spec.credentials", lambda spec: [spec.credentials] if spec.credentials else [], blocks=False
        ),
    ),
    verbs=(
        Verb(
            "set",
            "Say which values its properties shall have",
            input=SetInput,
            change=_set,
            act=_set_times,
            reads=lambda obj, _: [(DEVICE_MODEL.name, model)] if (model := dig(obj, "spec.model", "")) else [],
            needs="write",
            says=_describe_set,
        ),
        Verb("approve", "Use a device that was found", input=ApproveInput, change=_approve, needs="write"),
    ),
    in_backups="kept",
    access=Access(
        readers="project",
        status_writer="devices",
        mark_writers={"desired_until": (":set", "devices", "device rollouts")},
        node_reads="serving",
    ),
    admission=Admission(check=check_device, settle_actions=_end_times),
    display=Display(
        topic="Devices",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", OFFLINE), keep=True),
            Column("MODEL", text("spec.model")),
            Column("NODE", text("spec.node")),
            Column("SEEN", _seen),
            Column("REPORTED", _values, flexible=True),
            Column("DRIFT", _drift, flexible=True, keep=True),
            Column("PROTOCOL", text("spec.protocol"), wide=True),
            Column("ADDRESS", text("spec.address"), wide=True),
            AGE,
            Column("NOTE", text("status.problem", ""), flexible=True),
        ),
    ),
    lifetime=Lifetime(goals={"wait": reaches(ONLINE)}),
)
