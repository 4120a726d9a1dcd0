"""Table cells that several kinds share: each takes a whole object as plain data and gives the text. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.kinds.record import Column, Object
from weft.objects.quantity import format_bytes, format_cpu


def dig(obj: Object, path: str, default: Any = None) -> Any:
    """The value at a dotted ``path``, or ``default``."""
    node: Any = obj
    for part in path.split("."):
        if not isinstance(node, dict) or node.get(part) is None:
            return default
        node = node[part]
    return node


def text(path: str, missing: str = "–") -> Callable[[Object], str]:
    return lambda obj: str(dig(obj, path, missing)) or missing


def size(path: str, missing: str = "–") -> Callable[[Object], str]:
    def cell(obj: Object) -> str:
        value = dig(obj, path)
        return missing if value is None else format_bytes(value)

    return cell


def cores(path: str) -> Callable[[Object], str]:
    return lambda obj: format_cpu(dig(obj, path, 0))


def joined(path: str, missing: str = "–") -> Callable[[Object], str]:
    return lambda obj: ", ".join(str(x) for x in dig(obj, path, [])) or missing


NAME = Column("NAME", text("name"))
# The age is drawn by whoever has a clock: a column with this title gets created_at as unix seconds.
AGE = Column("AGE", lambda obj: str(dig(obj, "created_at", 0.0)))
