"""Cost of a change of a spec: the one table behind apply, dry-run, hot-plug and the docs. Pure.

What a field declares, and when a change takes effect:
  live     at once
  plug     at once within the running machine's ``limits`` (by field the largest value, or for a list, how many more
           items), else with a restart
  restart  with a restart
  replace  never while it is placed
  never    never
If nothing runs, a change that needs a restart, or is limited, takes effect with the next ``start``.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from weft.objects.schema import ChangeMode, change_modes

Cost = Literal["live", "restart", "start", "replace", "never"]
Limits = Mapping[str, int]
NO_LIMITS: Limits = {}


class FieldChange(msgspec.Struct, frozen=True):
    path: str
    old: Any
    new: Any
    mode: Cost


def plan_change(
    old: Mapping[str, Any], new: Mapping[str, Any], type_: Any, limits: Limits | None = NO_LIMITS
) -> list[FieldChange]:
    """The fields that differ between two specs, each with the cost of its change, in field order. ``limits`` are the running
    machine's, None if none runs."""
    modes = change_modes(type_)
    changes: list[FieldChange] = []
    _compare(old, new, "spec", modes, lambda: limits, changes)
    return changes


def plan_spec_change(
    old: msgspec.Struct,
    new: msgspec.Struct,
    find_limits: Callable[[], Limits | None] = lambda: NO_LIMITS,
    part: str = "spec",
) -> list[FieldChange]:
    """``plan_change`` of two whole specs of one kind, or of another ``part`` of two objects: it compares only the fields that
    differ in detail, and reads the limits only if they matter."""
    was, now = msgspec.structs.astuple(old), msgspec.structs.astuple(new)
    changes: list[FieldChange] = []
    differing = itertools.compress(zip(new.__struct_encode_fields__, was, now, strict=True), map(operator.ne, was, now))
    modes, plain = change_modes(type(new)), msgspec.to_builtins
    for name, before, after in differing:
        _compare(plain(before), plain(after), f"{part}.{name}", modes, find_limits, changes)
    return changes


def _compare(
    old: Any,
    new: Any,
    path: str,
    modes: Mapping[str, ChangeMode],
    find_limits: Callable[[], Limits | None],
    out: list[FieldChange],
) -> None:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            _compare(old.get(key), new.get(key), f"{path}.{key}", modes, find_limits, out)
        return
    out.append(FieldChange(path, old, new, _cost(_mode(path, modes), path, old, new, find_limits)))


def _cost(mode: ChangeMode, path: str, old: Any, new: Any, find_limits: Callable[[], Limits | None]) -> Cost:
    if mode in ("plug", "restart"):
        limits = find_limits()
        if limits is None:
            return "start"
        return "live" if mode == "plug" and _fits(path.partition(".")[2], old, new, limits) else "restart"
    return mode  # type: ignore[return-value]  # what is left is the same word in both


def _fits(field: str, old: Any, new: Any, limits: Limits) -> bool:
    if field not in limits:
        return False
    if isinstance(new, list):
        added = [str(item) for item in new if item not in old]
        known = {str(item).partition(":")[0] for item in old}
        # A changed item can't be there twice, as it was and as it is.
        return len(added) <= limits[field] and not any(item.partition(":")[0] in known for item in added)
    return bool(new <= limits[field])


def _mode(path: str, modes: Mapping[str, ChangeMode]) -> ChangeMode:
    while path not in modes and "." in path:
        path = path.rpartition(".")[0]
    return modes.get(path, "live")
