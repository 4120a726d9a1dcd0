"""DeviceModel: what devices of one sort have, as a W3C Thing Model cut to what weft acts on, and which found ones it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from weft.kinds.constraint import read_plain
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.device.affordance import (
    MOST_PROPERTIES,
    Action,
    Happening,
    Property,
    check_name,
    check_property,
)
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Object, Stored
from weft.language.parse import read_expression
from weft.language.tree import attributes_of
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration
from weft.objects.schema import field

MOST_ACTIONS = 50
LONGEST_SILENCE_SECONDS = 31 * 86400.0
FACTS = ("protocol", "address", "name", "manufacturer", "model", "node")  # of a found device, for ``accept``


class DeviceModelSpec(msgspec.Struct, kw_only=True):
    title: Annotated[str, field("Title, for people", max_length=100)] = ""
    properties: Annotated[dict[str, Property], field("What its devices have, by name")] = {}
    actions: Annotated[dict[str, Action], field("What its devices do when asked, by name")] = {}
    events: Annotated[dict[str, Happening], field("What its devices tell of, by name")] = {}
    accept: Annotated[
        str,
        field(
            "Condition on a found device that approves it with this model, like protocol=mqtt,manufacturer=Acme; it may read "
            "protocol, address, name, manufacturer, model and node",
            max_length=1000,
        ),
    ] = ""
    stale_seconds: Annotated[
        float,
        field("Silence after which a device is Stale", quantity="duration", ge=1, le=LONGEST_SILENCE_SECONDS),
    ] = 60.0
    offline_seconds: Annotated[
        float,
        field("Silence after which a device is Offline", quantity="duration", ge=1, le=LONGEST_SILENCE_SECONDS),
    ] = 300.0


class DeviceModelStatus(msgspec.Struct, kw_only=True):
    pass


def check_device_model(spec: DeviceModelSpec) -> None:
    """Raises InvalidInput."""
    for word, found, most in (
        ("properties", spec.properties, MOST_PROPERTIES),
        ("actions", spec.actions, MOST_ACTIONS),
        ("events", spec.events, MOST_ACTIONS),
    ):
        if len(found) > most:
            raise InvalidInput(f"spec.{word}: {len(found)} entries", field=f"spec.{word}", hint=f"give at most {most}")
        for name in found:
            check_name(name, f"spec.{word}")
    for name, one in spec.properties.items():
        check_property(one, f"spec.properties.{name}")
    for name, action in spec.actions.items():
        if action.input is not None:
            check_property(action.input, f"spec.actions.{name}.input")
    for name, event in spec.events.items():
        if event.data is not None:
            check_property(event.data, f"spec.events.{name}.data")
    if spec.offline_seconds < spec.stale_seconds:
        raise InvalidInput(
            f"spec.offline_seconds: {format_duration(spec.offline_seconds)} is less than stale_seconds",
            field="spec.offline_seconds",
            hint=f"give at least {format_duration(spec.stale_seconds)}",
        )
    spec.accept = spec.accept.strip()
    if spec.accept:
        read_plain(spec.accept, "spec.accept")
        for attribute in attributes_of(read_expression(spec.accept, "spec.accept")):
            if attribute not in FACTS:
                raise InvalidInput(
                    f"spec.accept: a found device has no {attribute[:60]!r}",
                    field="spec.accept",
                    hint="it has: " + ", ".join(FACTS),
                )


def _properties(obj: Object) -> str:
    return ", ".join(sorted(dig(obj, "spec.properties") or {})) or "–"


MODELS_ACCEPTING = Index("device models that take found devices, by project")


def _accepts_in(item: Stored) -> Iterable[str]:
    return (item.envelope.project or "",) if item.spec(DeviceModelSpec).accept else ()


DEVICE_MODEL = Kind(
    name="devicemodel",
    plural="devicemodels",
    title="device model",
    summary="What devices of one sort have, and which found ones it takes",
    spec=DeviceModelSpec,
    status=DeviceModelStatus,
    indexes={MODELS_ACCEPTING: _accepts_in},
    in_backups="kept",
    access=Access(readers="project", node_reads="serving"),
    admission=Admission(check=check_device_model),
    display=Display(
        topic="Devices",
        columns=(
            NAME,
            Column("TITLE", text("spec.title"), flexible=True),
            Column("PROPERTIES", _properties, flexible=True),
            Column("ACCEPT", text("spec.accept"), flexible=True),
            AGE,
        ),
    ),
)
