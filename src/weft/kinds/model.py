"""Model: an ONNX file that decides for devices at their gateways, and the simple rule that decides when the file doesn't in time.

People write it; the gateways with such devices run the file in a process of its own, and the API takes their counts; the controller
``devices`` makes the status.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from weft.kinds.constraint import read_plain
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.device.affordance import (
    Value,
    check_condition,
    check_name,
    check_number,
    check_reading,
    check_value,
    no_property,
)
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Reference, Stored
from weft.kinds.rule import MOST_LABELS, MOST_SECONDS, MOST_WORDS, Selector
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels
from weft.objects.schema import field

MOST_INPUTS = 64
MOST_DEADLINE_MS = 1000.0
MOST_INDEX = 1023
DIGEST = re.compile(r"[0-9a-f]{64}")


class Result(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Use of a number that the file gives: it sets a property, or announces an event."""

    output: Annotated[str, field("Output of the file; unset: its first", max_length=200)] = ""
    index: Annotated[int, field("Which number of that output, from 0", ge=0, le=MOST_INDEX)] = 0
    scale: Annotated[float, field("What the number is multiplied by")] = 1.0
    offset: Annotated[float, field("What is added then: this is the value")] = 0.0
    threshold: Annotated[float | None, field("Threshold: at or above it the decision is true")] = None
    set: Annotated[str, field("Property that gets the value, or the decision", max_length=63)] = ""
    device: Annotated[
        str,
        field("Device behind the same gateway that has the property; unset: the one whose values were read", name=True),
    ] = ""
    expires_seconds: (
        Annotated[
            float, field("The value is worth nothing after so long", quantity="duration", ge=0.1, le=MOST_SECONDS)
        ]
        | None
    ) = None
    event: Annotated[
        str, field("Words of an event, for people, when the decision becomes true", max_length=MOST_WORDS)
    ] = ""


class Fallback(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Decision when the file makes none: by a condition, or a fixed value. Without either, everything stays as it is."""

    when: Annotated[
        str,
        field("Condition over the device's values, as in a rule: the decision is whether it holds", max_length=1000),
    ] = ""
    value: Annotated[Value | None, field("The value itself")] = None


class ModelSpec(msgspec.Struct, kw_only=True):
    file: Annotated[str, field("The SHA-256 of an uploaded ONNX file; --file FILE.onnx uploads one")]
    node: Annotated[str, field("Only devices behind this node's gateway; unset: behind any", name=True)] = ""
    devices: Annotated[Selector, field("Devices that it decides for; without anything: all of the project")] = (
        msgspec.field(default_factory=Selector)
    )
    inputs: Annotated[
        list[str],
        field("What the file reads, in its order: properties, or measures of their windows like temperature.mean60"),
    ]
    result: Annotated[Result, field("What becomes of what the file gives")]
    fallback: Annotated[Fallback, field("What decides when the file is late, fails, or gives no number")] = (
        msgspec.field(default_factory=Fallback)
    )
    deadline_ms: Annotated[
        float, field("After so many milliseconds the fallback decides", ge=1, le=MOST_DEADLINE_MS)
    ] = 8.0


class NodeRuns(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Counts of one gateway over all time. Each of late, nan and dead is a time that the fallback decided."""

    file: str = ""  # which it runs now; "": none
    runs: int = 0
    late: int = 0
    nan: int = 0
    dead: int = 0  # its process had ended, or hadn't begun
    p99_ms: float | None = None  # of the last decisions, from the values to the answer
    problem: str = ""


class ModelReport(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    nodes: dict[str, NodeRuns] = {}  # by name


class ModelStatus(msgspec.Struct, kw_only=True):
    runs: int = 0
    misses: int = 0  # of these runs: the fallback decided
    p99_ms: float | None = None  # of the slowest node
    problem: str = ""
    nodes: dict[str, NodeRuns] = {}


def check_model(spec: ModelSpec) -> None:
    """Raises InvalidInput."""
    if not DIGEST.fullmatch(spec.file):
        raise InvalidInput(
            f"spec.file: {spec.file[:80]!r} is not a SHA-256",
            field="spec.file",
            hint="give the 64 lower-case hex digits of an uploaded ONNX file; --file FILE.onnx uploads one",
        )
    check_labels(spec.devices.labels, "spec.devices.labels")
    if len(spec.devices.labels) > MOST_LABELS:
        raise InvalidInput(
            f"spec.devices.labels: {len(spec.devices.labels)} labels",
            field="spec.devices.labels",
            hint=f"give at most {MOST_LABELS}",
        )
    if not 1 <= len(spec.inputs) <= MOST_INPUTS:
        raise InvalidInput(
            f"spec.inputs: {len(spec.inputs)} inputs",
            field="spec.inputs",
            hint=f"give 1 to {MOST_INPUTS}, in the order in which the file takes them",
        )
    for at, name in enumerate(spec.inputs):
        check_reading(name, f"spec.inputs[{at}]")
    _check_result(spec.result)
    _check_fallback(spec.fallback, spec.result)


def _check_result(result: Result) -> None:
    where = "spec.result"
    if bool(result.set) == bool(result.event):
        raise InvalidInput(
            f"{where}: it has {'both' if result.set else 'neither'} of set and event",
            field=where,
            hint="give one of them",
        )
    for word, number in (("scale", result.scale), ("offset", result.offset), ("threshold", result.threshold)):
        if number is not None and not math.isfinite(number):
            raise InvalidInput(f"{where}.{word}: {number} is not finite", field=f"{where}.{word}", hint="give a number")
    if result.set:
        check_name(result.set, f"{where}.set")
        return
    if result.device or result.expires_seconds is not None or not result.event.isprintable():
        raise InvalidInput(
            f"{where}.event: it is one line of text, without device and expires_seconds",
            field=f"{where}.event",
            hint="give the event alone",
        )
    if result.threshold is None:
        raise InvalidInput(
            f"{where}.threshold is missing: an event comes when a value reaches it",
            field=f"{where}.threshold",
            hint="give a number, like 0.5",
        )


def _check_fallback(fallback: Fallback, result: Result) -> None:
    where = "spec.fallback"
    if fallback.when and fallback.value is not None:
        raise InvalidInput(f"{where}: it has both of when and value", field=where, hint="give one of them")
    if fallback.when:
        read_plain(fallback.when, f"{where}.when")
        if result.threshold is None:
            raise InvalidInput(
                f"{where}.when: a condition is true or false, and the result is a number",
                field=f"{where}.when",
                hint="give value, or a result.threshold",
            )
    value = fallback.value
    if value is None:
        return
    is_decision = isinstance(value, bool)
    if isinstance(value, str) or is_decision != (result.threshold is not None):
        kind = "a number" if result.threshold is None else "true or false, as the result has a threshold"
        raise InvalidInput(f"{where}.value: {value!r} is not {kind}", field=f"{where}.value", hint=f"give {kind}")


def _agree(spec: ModelSpec, models: Mapping[str, DeviceModelSpec]) -> None:
    """Inputs and result fit the device model, where one is named."""
    model = models.get(spec.devices.model)
    if model is None:
        return
    for at, name in enumerate(spec.inputs):
        check_number(name, model.properties, f"spec.inputs[{at}]")
    if spec.fallback.when:
        check_condition(spec.fallback.when, model.properties, "spec.fallback.when")
    if not spec.result.set or spec.result.device:  # another device may be of another model
        return
    known = model.properties.get(spec.result.set)
    if known is None:
        raise no_property(list(model.properties), spec.result.set, "spec.result.set")
    fits = known.type == "boolean" if spec.result.threshold is not None else known.type in ("number", "integer")
    if not fits:
        what = "a decision" if spec.result.threshold is not None else "a number"
        raise InvalidInput(
            f"spec.result.set: {spec.result.set} is of type {known.type}, and the result is {what}",
            field="spec.result.set",
            hint="give a result.threshold for a boolean property, and none for a number",
        )
    if known.read_only:
        raise InvalidInput(
            f"spec.result.set: only the device sets {spec.result.set}",
            field="spec.result.set",
            hint="name another property: weft devicemodel describe MODEL lists them",
        )
    if spec.fallback.value is not None:
        check_value(known, spec.fallback.value, "spec.fallback.value")


def _about(obj: Object) -> str:
    labels = [f"{name}={value}" for name, value in sorted((dig(obj, "spec.devices.labels") or {}).items())]
    return ", ".join([*filter(None, [dig(obj, "spec.devices.model", "")]), *labels]) or "all"


def _result(obj: Object) -> str:
    return str(dig(obj, "spec.result.set", "") or dig(obj, "spec.result.event", ""))


def _p99(obj: Object) -> str:
    found = dig(obj, "status.p99_ms")
    return "–" if found is None else f"{found:.1f} ms"


MODELS_BY_PROJECT = Index("models by project")


def _project_of(item: Stored) -> Iterable[str]:
    return (item.envelope.project or "",)


MODEL = Kind(
    name="model",
    plural="models",
    title="model",
    summary="An ONNX file that decides for devices at their gateway, and what decides when it doesn't in time",
    spec=ModelSpec,
    status=ModelStatus,
    report=ModelReport,
    indexes={MODELS_BY_PROJECT: _project_of},
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
    admission=Admission(check=check_model, uploads=lambda spec: [spec.file], upload_sort="onnx"),
    display=Display(
        topic="Devices",
        columns=(
            NAME,
            Column("INPUTS", lambda obj: ", ".join(dig(obj, "spec.inputs") or []), flexible=True),
            Column("RESULT", _result, flexible=True, keep=True),
            Column("DEVICES", _about, flexible=True),
            Column("RUNS", text("status.runs", "0"), align="right"),
            Column("MISSES", text("status.misses", "0"), align="right", keep=True),
            Column("P99", _p99, align="right"),
            Column("FILE", lambda obj: str(dig(obj, "spec.file", ""))[:12] or "–", wide=True),
            AGE,
            Column("NOTE", text("status.problem", ""), flexible=True),
        ),
    ),
)
