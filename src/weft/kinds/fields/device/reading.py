"""What rules and models read of a device: phase, properties, and measures of their windows like temperature.mean60. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from weft.kinds.fields.device.affordance import Property, no_property
from weft.language.parse import read_expression
from weft.language.tree import attributes_of
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

PHASE = "phase"
_READING = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,62})(?:\.(mean|min|max|count|last|rate)([1-9][0-9]{0,3}))?")


def list_readings(properties: Mapping[str, Property]) -> Iterator[str]:
    """The names that a condition over a device with these properties may have."""
    yield from (PHASE, *properties)
    for name, one in properties.items():
        for window in one.windows:
            yield from (f"{name}.{measure}{window.seconds}" for measure in window.of)


def check_condition(text: str, properties: Mapping[str, Property], where: str) -> None:
    """Raises InvalidInput for a condition that reads what devices with these properties haven't."""
    known = list(list_readings(properties))
    for name in attributes_of(read_expression(text, where)):
        if name not in known:
            meant = suggest(name, known)
            raise InvalidInput(
                f"{where}: its device model has no {name[:80]!r}",
                field=where,
                hint=f"did you mean {meant}?" if meant else f"it has: {', '.join(known[:10])}",
            )


def check_reading(name: str, where: str) -> None:
    """Raises InvalidInput for what is no device's property or measure, whatever its model."""
    if not _READING.fullmatch(name):
        raise InvalidInput(
            f"{where}: {name[:80]!r} is neither a property nor a measure of one",
            field=where,
            hint="write temperature, or temperature.mean60 for the mean of a window of 60 s",
        )


def check_number(name: str, properties: Mapping[str, Property], where: str) -> None:
    """Raises InvalidInput unless devices with these properties have ``name`` (as of ``check_reading``), and it is a number."""
    found = _READING.fullmatch(name)
    assert found is not None
    base, measure, seconds = found.groups()
    known = properties.get(base)
    if known is None:
        raise no_property(list(properties), base, where)
    if known.type == "string":
        raise InvalidInput(
            f"{where}: {base} is a text, and a model reads numbers",
            field=where,
            hint="name a number, integer or boolean",
        )
    if measure and name not in list_readings({base: known}):
        raise InvalidInput(
            f"{where}: its device model has no {measure} over {seconds} s of {base}",
            field=where,
            hint=f"declare it there: windows: [{{seconds: {seconds}, of: [{measure}]}}]",
        )
