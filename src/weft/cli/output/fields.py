"""Whether the fields that an expression names are there at all: a misspelt one would be an empty cell in each line. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from weft.kinds.fields.path import has_path, list_paths
from weft.kinds.registry import BY_NAME
from weft.objects.schema import suggest

_MOST_NAMED = 12


def list_objects(document: Any) -> list[Any]:
    """The objects of ``document``: those of a list, or itself."""
    return list(document["items"]) if is_list(document) else [document]


def is_list(document: Any) -> bool:
    return isinstance(document, dict) and set(document) == {"items"}


def refuse_unknown(flag: str, paths: Iterable[Sequence[str]], document: Any, listed: Sequence[str] = ()) -> None:
    """Raises UsageError, in words of ``flag``, for the first path (names of fields, lists left out) that no object of ``document``
    has, and that none of its kind can have; ``listed`` are the kinds of a list, which may be empty."""
    objects = [obj for obj in list_objects(document) if isinstance(obj, dict)]
    for path in paths:
        names = [str(obj.get("kind")) for obj in objects] or listed
        kinds = {name: BY_NAME[name] for name in names if name in BY_NAME}
        if not path or not (objects or kinds) or any(_has(obj, path) for obj in objects):
            continue
        if any(has_path(kind, path) for kind in kinds.values()):
            continue
        paths_there = sorted({one for kind in kinds.values() for one in list_paths(kind)})
        known = sorted({name for obj in objects for name in obj} or {one.partition(".")[0] for one in paths_there})
        if not kinds and path[0] in known:
            continue  # what is no object may lack any of its parts
        written = ".".join(path)
        ends = [path[at:] for at in range(1, len(path)) if path[at] in known]  # status.conditions for conditions
        beneath = [one for one in paths_there if one.endswith(f".{written}")]  # status.phase for phase
        nearest = min(beneath, key=lambda one: (one.count("."), one)) if beneath else ""
        meant = ".".join(ends[0]) if ends else nearest or suggest(written, sorted({*known, *paths_there}))
        there = ", ".join(known[:_MOST_NAMED])
        raise click.UsageError(
            f"{flag} {written[:60]}: no such field; {f'did you mean {meant}?' if meant else f'there are {there}'}"
        )


def _has(value: Any, path: Sequence[str]) -> bool:
    if isinstance(value, list):
        return any(_has(one, path) for one in value)
    if not path:
        return True
    return isinstance(value, Mapping) and path[0] in value and _has(value[path[0]], path[1:])
