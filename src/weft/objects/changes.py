"""What a change of a spec costs: the one table behind apply, dry-run, hot-plug and the docs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from weft.objects.schema import ChangeMode, change_modes


class FieldChange(msgspec.Struct, frozen=True):
    path: str
    old: Any
    new: Any
    mode: ChangeMode


def plan_change(old: dict[str, Any], new: dict[str, Any], type_: Any) -> list[FieldChange]:
    """The fields that differ between two specs, each with what carrying it out takes, in field order."""
    modes = change_modes(type_)
    changes: list[FieldChange] = []
    _compare(old, new, "spec", modes, changes)
    return changes


def _compare(old: Any, new: Any, path: str, modes: Mapping[str, ChangeMode], out: list[FieldChange]) -> None:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            _compare(old.get(key), new.get(key), f"{path}.{key}", modes, out)
        return
    out.append(FieldChange(path, old, new, _mode(path, modes)))


def _mode(path: str, modes: Mapping[str, ChangeMode]) -> ChangeMode:
    while path not in modes and "." in path:
        path = path.rpartition(".")[0]
    return modes.get(path, "live")
