"""The fields by which a kind's objects can be selected: which paths there are, and which values each can have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.kinds.record import Kind
from weft.objects.envelope import Envelope
from weft.objects.errors import UnknownField
from weft.objects.schema import PathValues, find_place, suggest

_PARTS = ("spec", "actions", "marks", "status", "report")  # of an envelope that are a kind's own
_SHORT = ("", "status", "spec")  # where a path may begin, as in ``Fields``
_ALSO = {"state": "status.phase"}  # as other tools call it


def read_path(kind: Kind, path: str) -> tuple[str, PathValues]:
    """``path`` as ``Fields`` takes it, and the field of ``kind`` at its end. Raises UnknownField if there is none."""
    for known in (path, _ALSO.get(path, "")):
        for root in _SHORT if known else ():
            place = _find(kind, [*filter(None, [root]), *known.split(".")])
            if place is not None:
                return known, place
    meant = suggest(path.removeprefix("status.").removeprefix("spec."), _list_paths(kind))
    raise UnknownField(
        f"{path[:60]!r} is not a field of {kind.plural}",
        field=path[:60],
        hint=f"did you mean {meant}?" if meant else "fields: " + ", ".join(_list_paths(kind)),
    )


def is_short_path(kind: Kind, path: str) -> bool:
    """Whether objects of ``kind`` can have something at ``path`` as ``Fields`` takes it."""
    return any(_find(kind, [*filter(None, [root]), *path.split(".")]) is not None for root in _SHORT)


def has_path(kind: Kind, path: Sequence[str]) -> bool:
    """Whether objects of ``kind`` can have something at the whole ``path``, in the items of lists too."""
    return (len(path) == 1 and path[0] in _PARTS) or _find(kind, list(path), in_lists=True) is not None


def list_paths(kind: Kind) -> list[str]:
    """The names of all fields of the first two levels, as a whole path has them."""
    own = [
        f"{part}.{one.encode_name}"
        for part in _PARTS
        if getattr(kind, part)
        for one in msgspec.structs.fields(getattr(kind, part))
    ]
    return [*(one.encode_name for one in msgspec.structs.fields(Envelope)), *own]


def _find(kind: Kind, path: list[str], *, in_lists: bool = False) -> PathValues | None:
    first, *rest = path
    types = {part: getattr(kind, part) for part in _PARTS}
    if first in _PARTS:
        type_ = types[first]
        return None if type_ is None or not rest else find_place(type_, rest, in_lists=in_lists)
    return find_place(Envelope, path, in_lists=in_lists)


def _list_paths(kind: Kind) -> list[str]:
    """The short names of all such fields."""
    names = [name for name in msgspec.structs.fields(Envelope) if name.encode_name not in (*_PARTS, "unknown")]
    paths = [name.encode_name for name in names]
    for part in ("status", "spec", "actions", "marks", "report"):
        type_, before = getattr(kind, part), "" if part in _SHORT else f"{part}."
        paths += [f"{before}{f.encode_name}" for f in msgspec.structs.fields(type_)] if type_ is not None else []
    return paths
