"""Table cells that several kinds share: each takes a whole object as plain data and gives the text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from weft.kinds.record import Column, Object
from weft.objects.quantity import format_bytes, format_cpu


def dig(obj: Object, path: str, default: Any = None) -> Any:
    """The value at a dotted ``path``, or ``default``."""
    return _dig(obj, path.split("."), default)


def _dig(obj: Object, parts: Sequence[str], default: Any) -> Any:
    node: Any = obj
    for part in parts:
        if not isinstance(node, dict):
            return default
        node = node.get(part)
        if node is None:
            return default
    return node


def text(path: str, missing: str = "–") -> Callable[[Object], str]:
    parts = path.split(".")
    return lambda obj: str(_dig(obj, parts, missing)) or missing


def size(path: str, missing: str = "–") -> Callable[[Object], str]:
    parts = path.split(".")

    def cell(obj: Object) -> str:
        value = _dig(obj, parts, None)
        return missing if value is None else format_bytes(value)

    return cell


def cores(path: str) -> Callable[[Object], str]:
    parts = path.split(".")
    return lambda obj: format_cpu(_dig(obj, parts, 0))


def joined(path: str, missing: str = "–") -> Callable[[Object], str]:
    return lambda obj: ", ".join(str(x) for x in dig(obj, path, [])) or missing


def note(obj: Object) -> str:
    """Note in its status beside the phase."""
    reason, message = str(dig(obj, "status.reason", "")), str(dig(obj, "status.message", ""))
    return f"{reason}: {message}" if reason and message else reason or message


NAME = Column("NAME", text("name"))
# What has a clock draws the age: a column with this title gets created_at as unix seconds.
AGE = Column("AGE", lambda obj: str(dig(obj, "created_at", 0.0)))
