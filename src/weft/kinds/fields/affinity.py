"""The grammar of affinity: groups to share nodes with or to avoid, spreads, and data, talkers or a device to be near. Pure.

``webapp`` is a must, ``webapp:preferred`` a preference. Only the scheduler parses these texts again."""

from __future__ import annotations

import re

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels, check_name
from weft.objects.schema import suggest

MOST_GROUPS = 16
MOST_SPREADS = 8
MOST_DATA = 16
MOST_SKEW = 1000
HOST = "host"  # spreads over the nodes themselves; any other key is a label of nodes
TALKERS = "talkers"  # what a workload may prefer to be near: those that it talks to most
_DEVICE = "device/"  # … or a device, behind whose gateway's node: its name follows
_FIRM = {"required": True, "preferred": False}
_DATUM = re.compile(r"[^\s,;]{1,100}")
_GROUP_HINT = "write NAME or NAME:preferred, like webapp or webapp:preferred"
_SPREAD_HINT = "write KEY or KEY:SKEW, with :preferred for a preference, like zone, rack:2 or zone:preferred"


class GroupTerm(msgspec.Struct, frozen=True):
    """A group of workloads of the same project; ``required``: a must, not a preference."""

    name: str
    required: bool = True

    def __str__(self) -> str:
        return self.name if self.required else f"{self.name}:preferred"


class SpreadTerm(msgspec.Struct, frozen=True):
    """No value of the nodes' label ``key`` has more than ``skew`` members more than another."""

    key: str
    skew: int = 1
    required: bool = True

    def __str__(self) -> str:
        skew = "" if self.skew == 1 else f":{self.skew}"
        return f"{self.key}{skew}" + ("" if self.required else ":preferred")


def read_group(text: str, field: str) -> GroupTerm:
    """``webapp`` or ``webapp:preferred``. Raises InvalidInput."""
    name, colon, firm = text.partition(":")
    if colon and firm not in _FIRM:
        raise _not_firm(text, firm, field, _GROUP_HINT)
    try:
        return GroupTerm(check_name(name, field), _FIRM.get(firm, True))
    except InvalidInput as problem:
        raise InvalidInput(problem.message, field=field, hint=_GROUP_HINT) from None


def read_spread(text: str, field: str) -> SpreadTerm:
    """``zone``, ``rack:2`` or ``zone:preferred``. Raises InvalidInput."""
    key, *rest = text.split(":")
    required = True
    if rest and not rest[-1].isdecimal():
        firm = rest.pop()
        if firm not in _FIRM:
            raise _not_firm(text, firm, field, _SPREAD_HINT)
        required = _FIRM[firm]
    skew = rest.pop() if rest else "1"
    if not key or rest or not skew.isdecimal():
        raise InvalidInput(f"{field}: {text[:60]!r} is not a spread", field=field, hint=_SPREAD_HINT)
    if len(skew) > 4 or not 1 <= int(skew) <= MOST_SKEW:
        raise InvalidInput(
            f"{field}: a skew of {skew[:20]} is not between 1 and {MOST_SKEW}", field=field, hint=_SPREAD_HINT
        )
    check_labels({key: ""}, field)
    return SpreadTerm(HOST if key == "node" else key, int(skew), required)


def read_datum(text: str, field: str) -> str:
    """``ceph-pool:raw-data``, as nodes declare it. Raises InvalidInput."""
    if not _DATUM.fullmatch(text):
        raise InvalidInput(
            f"{field}: {text[:60]!r} doesn't name data",
            field=field,
            hint="write it as nodes declare it, like ceph-pool:raw-data; or volume:NAME, image:NAME",
        )
    kind, _, name = text.partition(":")
    if kind in ("image", "volume") and "/" in name:
        raise InvalidInput(
            f"{field}: {text[:60]!r} is of another project",
            field=field,
            hint=f"write {kind}:NAME of the same project, or leave it out",
        )
    return text


def check_affinity(together: list[str], separate: list[str], spread: list[str], data: list[str]) -> None:
    """The fields make sense together; texts get their one spelling. Raises InvalidInput."""
    if not (together or separate or spread or data):
        return
    for field, texts, most in (
        ("affinity_groups", together, MOST_GROUPS),
        ("anti_affinity_groups", separate, MOST_GROUPS),
        ("spread", spread, MOST_SPREADS),
        ("data_hints", data, MOST_DATA),
    ):
        if len(texts) > most:
            raise InvalidInput(f"spec.{field}: at most {most}", field=f"spec.{field}")
    groups: dict[str, str] = {}
    for field, texts in (("affinity_groups", together), ("anti_affinity_groups", separate)):
        for index, text in enumerate(texts):
            at = f"spec.{field}[{index}]"
            spec = read_group(text, at)
            if spec.name in groups:
                raise _named_twice(spec.name, groups[spec.name], field, at)
            groups[spec.name] = field
            texts[index] = str(spec)
    keys = set()
    for index, text in enumerate(spread):
        at = f"spec.spread[{index}]"
        one = read_spread(text, at)
        if one.key in keys:
            raise InvalidInput(f"{at}: {one.key} is named twice", field=at, hint="name each key once")
        keys.add(one.key)
        spread[index] = str(one)
    if spread and not separate:
        raise InvalidInput(
            "spec.spread: needs an anti-affinity group whose members are spread",
            field="spec.spread",
            hint="add --anti-affinity-group NAME:preferred, or NAME if no two may share a node",
        )
    for index, text in enumerate(data):
        read_datum(text, f"spec.data_hints[{index}]")
    if len(set(data)) != len(data):
        raise InvalidInput("spec.data_hints names the same thing twice", field="spec.data_hints")


def _named_twice(name: str, before: str, field: str, at: str) -> InvalidInput:
    if before == field:
        return InvalidInput(f"{at}: group {name} is named twice", field=at, hint="name each group once")
    return InvalidInput(
        f"{at}: a workload can't be both with the members of group {name} and apart from them",
        field=at,
        hint="name it in one of affinity_groups and anti_affinity_groups",
    )


def _not_firm(text: str, firm: str, field: str, hint: str) -> InvalidInput:
    meant = suggest(firm, list(_FIRM))
    return InvalidInput(
        f"{field}: {text[:60]!r} ends in neither preferred nor required",
        field=field,
        hint=f"did you mean {text[: -len(firm)] if firm else text}{meant}?" if meant else hint,
    )


def check_near(near: str | None, *, talkers: bool = True) -> None:
    """Raises InvalidInput; ``talkers``: that may be written, too."""
    if near is None or (talkers and near == TALKERS):
        return
    if near == TALKERS:
        raise InvalidInput(
            "spec.near: a function talks to nobody while it waits for its invocations",
            field="spec.near",
            hint="write device/NAME, or leave it out: network-proximity goes by the caller",
        )
    kind, slash, name = near.partition("/")
    if not slash or kind != "device":
        words = f"{TALKERS}, or device/NAME" if talkers else "device/NAME"
        raise InvalidInput(
            f"spec.near: {near[:60]!r} is nothing to be near to", field="spec.near", hint=f"write {words}"
        )
    try:
        check_name(name, "spec.near")
    except InvalidInput as problem:
        hint = "name a device of the same project, like device/fridge-1"
        raise InvalidInput(problem.message, field="spec.near", hint=hint) from None


def device_of(near: str | None) -> str:
    """The name of the device; "" if it is none."""
    return near.removeprefix(_DEVICE) if near is not None and near.startswith(_DEVICE) else ""
