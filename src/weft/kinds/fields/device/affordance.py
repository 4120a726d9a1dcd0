"""Affordances of a device by its model: properties with their types and bounds, actions and events; whether a value fits; what
rules and models read of it; and the topics of devices that invoke functions. Pure.

The fields are those of a W3C Thing Model that weft acts on, with their JSON Schema words written in weft's way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.device.register import list_held
from weft.language.parse import read_expression
from weft.language.tree import attributes_of
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name as check_object_name
from weft.objects.schema import field, suggest

Value = bool | int | float | str
MOST_PROPERTIES = 100  # of a model, and of a device's values
MOST_WINDOWS = 8  # of a property
MOST_CHOICES = 64
MOST_VALUE_BYTES = 1024  # of one value, as JSON
MOST_WINDOW_SECONDS = 3600
MOST_TOPICS = 16  # of a function
ANY = "+"
EVENT, REPORTED = "event", "reported"
_TOPIC_HINT = (
    "write weft/PROJECT/DEVICE/event or weft/PROJECT/DEVICE/reported/PROPERTY, with + for any device or property"
)
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
PHASE = "phase"
_READING = re.compile(r"([A-Za-z][A-Za-z0-9_]{0,62})(?:\.(mean|min|max|count|last|rate)([1-9][0-9]{0,3}))?")
Type = Literal["number", "integer", "boolean", "string"]
Measure = Literal["mean", "min", "max", "count", "last", "rate"]


class Window(msgspec.Struct, kw_only=True, frozen=True):
    """Measures over each stretch of so many seconds: rules read them as ``temperature.mean60``."""

    seconds: Annotated[int, field("Length of the window", ge=1, le=MOST_WINDOW_SECONDS)]
    of: Annotated[list[Measure], field("Measures of its values")]


class Property(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A property of a device."""

    type: Annotated[Type, field("Type of its values")]
    title: Annotated[str, field("Title, for people", max_length=100)] = ""
    unit: Annotated[str, field("Unit of its values", max_length=32)] = ""
    minimum: Annotated[float | None, field("Least value")] = None
    maximum: Annotated[float | None, field("Greatest value")] = None
    enum: Annotated[list[Value], field("The only values that there are")] = []
    max_length: Annotated[int, field("Longest text, in characters", ge=1, le=MOST_VALUE_BYTES)] | None = None
    read_only: Annotated[bool, field("Only the device sets it")] = False
    observable: Annotated[bool, field("The device sends changes without being asked")] = False
    deadband: Annotated[float, field("A change of no more than this is not reported to the server", ge=0)] = 0.0
    windows: Annotated[list[Window], field("Measures over time, which rules may read")] = []
    href: Annotated[
        str, field("Where the driver finds it, in the driver's own words: a topic, a register", max_length=200)
    ] = ""


class Action(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Something that a device does when asked."""

    title: Annotated[str, field("Title, for people", max_length=100)] = ""
    input: Annotated[Property | None, field("What it takes")] = None
    href: Annotated[str, field("Where the driver finds it", max_length=200)] = ""


class Happening(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Something that a device tells of."""

    title: Annotated[str, field("Title, for people", max_length=100)] = ""
    data: Annotated[Property | None, field("What comes with it")] = None


def check_name(name: str, where: str) -> None:
    """Raises InvalidInput."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            f"{where}: {name[:63]!r} is not a name here",
            field=where,
            hint="begin with a letter; then letters, digits and _, at most 63, like lid_open",
        )


def check_values(values: Mapping[str, object], where: str, most_bytes: int) -> None:
    """Raises InvalidInput for values that no device takes, whatever its model: too many, too large, or without a name."""
    if len(values) > MOST_PROPERTIES:
        raise InvalidInput(
            f"{where}: {len(values)} values are too many", field=where, hint=f"give at most {MOST_PROPERTIES}"
        )
    for name, value in values.items():
        check_name(name, where)
        if isinstance(value, str) and len(value.encode(errors="replace")) > MOST_VALUE_BYTES:
            raise InvalidInput(
                f"{where}.{name}: a text of {len(value)} characters is too long",
                field=f"{where}.{name}",
                hint=f"give at most {MOST_VALUE_BYTES} bytes",
            )
    if (size := len(msgspec.json.encode(values))) > most_bytes:
        raise InvalidInput(
            f"{where}: the values have {size} bytes in all", field=where, hint=f"give at most {most_bytes >> 10} KiB"
        )


def check_property(one: Property, where: str) -> None:
    """Raises InvalidInput for a property that contradicts itself."""
    numeric = one.type in ("number", "integer")
    for word, bound in (("minimum", one.minimum), ("maximum", one.maximum)):
        if bound is not None and (not numeric or not math.isfinite(bound)):
            raise InvalidInput(
                f"{where}.{word}: a {one.type} has none",
                field=f"{where}.{word}",
                hint="leave it out, or make it a number",
            )
    if one.minimum is not None and one.maximum is not None and one.minimum > one.maximum:
        raise InvalidInput(
            f"{where}: minimum {one.minimum:g} is more than maximum {one.maximum:g}",
            field=f"{where}.minimum",
            hint="exchange them",
        )
    if one.max_length is not None and one.type != "string":
        raise InvalidInput(
            f"{where}.max_length: only a string has one", field=f"{where}.max_length", hint="leave it out"
        )
    if (one.deadband or one.windows) and not numeric:
        word = "deadband" if one.deadband else "windows"
        raise InvalidInput(f"{where}.{word}: only numbers have it", field=f"{where}.{word}", hint="leave it out")
    if len(one.enum) > MOST_CHOICES or len(one.windows) > MOST_WINDOWS:
        raise InvalidInput(
            f"{where}: {len(one.enum)} values in enum, {len(one.windows)} windows",
            field=where,
            hint=f"give at most {MOST_CHOICES} values and {MOST_WINDOWS} windows",
        )
    if len({each.seconds for each in one.windows}) < len(one.windows) or any(not each.of for each in one.windows):
        raise InvalidInput(
            f"{where}.windows: two have the same length, or one measures nothing",
            field=f"{where}.windows",
            hint="give each length once, with measures: {seconds: 60, of: [mean, max]}",
        )
    for at, value in enumerate(one.enum):
        check_value(msgspec.structs.replace(one, enum=[], read_only=False), value, f"{where}.enum[{at}]")


def check_value(one: Property, value: object, where: str) -> None:
    """Raises InvalidInput unless a device could have ``value`` for this property, and says which bound it breaks."""
    why = find_misfit(one, value)
    if why:
        raise InvalidInput(f"{where}: {why}", field=where, hint=_describe(one))


def find_misfit(one: Property, value: object) -> str:
    """Why ``value`` can't be one of this property's; "" if it can."""
    shown = repr(value)[:60]
    if not _has_type(one.type, value):
        return f"{shown} is not a value of type {one.type}"
    if one.enum and value not in one.enum:
        return f"{shown} is none of its values"
    if isinstance(value, str):
        longest = one.max_length or MOST_VALUE_BYTES
        if len(value) > longest or len(value.encode(errors="replace")) > MOST_VALUE_BYTES:
            return f"a text of {len(value)} characters is too long"
    elif not isinstance(value, bool) and isinstance(value, int | float):
        if one.minimum is not None and value < one.minimum:
            return f"{shown} is less than {one.minimum:g}"
        if one.maximum is not None and value > one.maximum:
            return f"{shown} is more than {one.maximum:g}"
    return ""


def _has_type(type_: Type, value: object) -> bool:
    if type_ == "boolean":
        return isinstance(value, bool)
    if type_ == "string":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An int may have thousands of digits, which no float holds: so its size comes first.
    return abs(value) < 2**63 and math.isfinite(value) and (type_ == "number" or float(value).is_integer())


def _describe(one: Property) -> str:
    if one.enum:
        return "give one of: " + ", ".join(map(str, one.enum[:10]))
    if one.type == "boolean":
        return "give true or false"
    least = "" if one.minimum is None else f" from {one.minimum:g}"
    most = "" if one.maximum is None else f" up to {one.maximum:g}"
    longest = "" if one.max_length is None else f" of at most {one.max_length} characters"
    article = "an" if one.type == "integer" else "a"
    return f"give {article} {one.type}{least}{most}{longest}" + (f", in {one.unit}" if one.unit else "")


def no_property(known: Sequence[str], name: str, where: str) -> InvalidInput:
    """The error for a property that a model, which has the ``known`` ones, has not."""
    meant = suggest(name, list(known))
    return InvalidInput(
        f"{where}.{name[:63]}: its model has no such property",
        field=f"{where}.{name[:63]}",
        hint=f"did you mean {meant}?" if meant else f"it has: {', '.join(known[:10]) or 'none'}",
    )


def check_desired(properties: Mapping[str, Property], desired: Mapping[str, object], where: str) -> None:
    """Raises InvalidInput unless people may set all of ``desired`` on a device with these properties."""
    for name, value in desired.items():
        found = properties.get(name)
        if found is None:
            raise no_property(list(properties), name, where)
        if found.read_only:
            raise InvalidInput(
                f"{where}.{name}: only the device sets it",
                field=f"{where}.{name}",
                hint="set another property: weft devicemodel describe MODEL lists them",
            )
        check_value(found, value, f"{where}.{name}")


def are_equal(one: Property | None, left: object, right: object) -> bool:
    """Whether ``right``, which is reported, is the desired value ``left``: numbers within the deadband, also of what the device
    can hold of it, and 1 is 1.0 but not true."""
    if isinstance(left, bool) or isinstance(right, bool) or isinstance(left, str) or isinstance(right, str):
        return type(left) is type(right) and left == right
    if isinstance(left, int | float) and isinstance(right, int | float):
        if max(abs(left), abs(right)) >= 2**63:  # a reported int may be more than a float holds
            return left == right
        near, href = (one.deadband, one.href) if one is not None else (0.0, "")
        return any(abs(held - right) <= near for held in list_held(href, left) if not isinstance(held, str))
    return left == right


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


class Topic(msgspec.Struct, frozen=True):
    """``weft/PROJECT/DEVICE/event`` or ``weft/PROJECT/DEVICE/reported/PROPERTY``, of devices of any protocol: of one that speaks no
    MQTT the gateway makes them of what it reads. ``device`` and ``property`` may be ANY; without a property it is one of events."""

    project: str
    device: str
    property: str = ""

    def fits(self, project: str, device: str, property_: str = "") -> bool:
        """Whether a message is one of these; ``property_``: what changed, "" for an event."""
        return (
            self.project == project
            and self.device in (ANY, device)
            and bool(self.property) == bool(property_)
            and self.property in (ANY, property_)
        )


def read_topic(text: str, where: str) -> Topic:
    """Raises InvalidInput."""
    words = text.split("/") if len(text) <= 200 else []
    if len(words) not in (4, 5) or words[0] != "weft":
        raise InvalidInput(f"{where}: {text[:80]!r} is not a topic of devices", field=where, hint=_TOPIC_HINT)
    project, device, leaf = words[1:4]
    of = words[4] if len(words) == 5 else ""
    if (leaf, bool(of)) not in ((EVENT, False), (REPORTED, True)) or (of not in ("", ANY) and not NAME.fullmatch(of)):
        raise InvalidInput(f"{where}: {text[:80]!r} is not a topic of devices", field=where, hint=_TOPIC_HINT)
    try:
        check_object_name(project, where)
        if device != ANY:
            check_object_name(device, where)
    except InvalidInput as problem:
        raise InvalidInput(problem.message, field=where, hint=_TOPIC_HINT) from None
    return Topic(project, device, of)


def check_topics(topics: Sequence[str], where: str, project: str | None = None) -> None:
    """Raises InvalidInput; with ``project``, also for topics of another one."""
    if len(topics) > MOST_TOPICS:
        raise InvalidInput(f"{where}: {len(topics)} topics", field=where, hint=f"give at most {MOST_TOPICS}")
    if len(set(topics)) < len(topics):
        raise InvalidInput(f"{where} names the same thing twice", field=where, hint="give each topic once")
    for at, text in enumerate(topics):
        found = read_topic(text, f"{where}[{at}]")
        if project is not None and found.project != project:
            raise InvalidInput(
                f"{where}[{at}]: {text} is a topic of project {found.project}",
                field=f"{where}[{at}]",
                hint=f"a function is invoked by devices of its own project: weft/{project}/…",
            )
