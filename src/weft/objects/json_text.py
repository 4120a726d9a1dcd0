"""JSON that people write, in which each key of an object stands once: of two, one would silently win. Pure."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec

from weft.objects.errors import InvalidInput


def decode_json(text: bytes) -> Any:
    """The value. Raises InvalidInput that names a key which is given twice, with its path; msgspec.DecodeError, UnicodeError or
    RecursionError for what is not JSON."""
    value = msgspec.json.decode(text)
    if msgspec.json.encode(value) != text:  # the same bytes again: no key was dropped
        _refuse_twice(text.decode())
    return value


def _refuse_twice(text: str) -> None:
    twice: list[tuple[dict[str, Any], str]] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice.append((made, next(name for at, name in enumerate(names) if name in names[:at])))
        return made

    # Loaded for the few texts that need it: each command would pay for it.
    whole = importlib.import_module("json").loads(
        text, object_pairs_hook=build, parse_int=float
    )  # no number is too long for it
    if twice:
        inside, name = twice[-1]  # the outermost one, which nothing hides
        path = [*(_find(whole, inside) or ()), name]
        field = ".".join(word[:60] for word in path)
        raise InvalidInput(f"{field} is given twice", field=field, hint="keep one of them")


def _find(value: Any, wanted: dict[str, Any]) -> list[str] | None:
    """The path to an object within ``value``; None if it isn't there."""
    if value is wanted:
        return []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        if (path := _find(part, wanted)) is not None:
            return [str(name), *path]
    return None
