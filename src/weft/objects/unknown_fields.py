"""Unknown fields, which a newer weft wrote: the writer of the others keeps them, at any depth. Pure."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import inspect as mi


@functools.cache
def field_names(type_: type[msgspec.Struct]) -> frozenset[str]:
    """The names of a struct's fields, as they stand in JSON."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(type_))


def keep_unknown(old: Any, new: Any, type_: type[msgspec.Struct]) -> Any:
    """``new``, plain data of a ``type_``, with the fields of ``old`` that ``type_`` and the structs in it don't have.

    A list's element gets those of the element of ``old`` that is otherwise the same."""
    return _keep(old, new, _shape_of(type_))


class _Shape:
    """The parts of a type that can have unknown fields: a struct's ``fields``, or the ``items`` of a list or a map."""

    def __init__(self) -> None:
        self.fields: dict[str, _Shape | None] | None = None
        self.items: _Shape | None = None


@functools.cache
def _shape_of(type_: type[msgspec.Struct]) -> _Shape | None:
    return _read_shape(mi.type_info(type_), {})


def _read_shape(info: mi.Type, known: dict[type, _Shape]) -> _Shape | None:
    shape = _Shape()
    match info:
        case mi.StructType(cls=cls, fields=fields):
            if cls in known:  # a struct that holds itself
                return known[cls]
            known[cls] = shape
            shape.fields = {field.encode_name: _read_shape(field.type, known) for field in fields}
            return shape
        case mi.ListType(item_type=item) | mi.VarTupleType(item_type=item) | mi.DictType(value_type=item):
            shape.items = _read_shape(item, known)
            return shape if shape.items is not None else None
        case mi.Metadata(type=inner):
            return _read_shape(inner, known)
        case mi.UnionType(types=types):
            found = [part for one in types if (part := _read_shape(one, known)) is not None]
            return found[0] if len(found) == 1 else None
    return None


def _keep(old: Any, new: Any, shape: _Shape | None) -> Any:
    if shape is None or old == new:
        return new
    if isinstance(old, dict) and isinstance(new, dict):
        fields = shape.fields
        if fields is None:
            return {name: _keep(old.get(name), value, shape.items) for name, value in new.items()}
        kept = {name: value for name, value in old.items() if name not in fields}
        return kept | {name: _keep(old.get(name), value, fields.get(name)) for name, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        left = list(old)
        return [_keep(_take_same(left, item, shape.items), item, shape.items) for item in new]
    return new


def _take_same(old: list[Any], item: Any, shape: _Shape | None) -> Any:
    """Take from ``old`` the element whose known part is ``item``; None if there is none."""
    for index, candidate in enumerate(old):
        if _known(candidate, item, shape) == item:
            return old.pop(index)
    return None


def _known(value: Any, like: Any, shape: _Shape | None) -> Any:
    """``value`` without what ``shape`` doesn't know, and without fields that ``like`` leaves out."""
    if shape is None:
        return value
    if isinstance(value, dict) and isinstance(like, dict):
        if shape.fields is None:
            return {name: _known(part, like.get(name), shape.items) for name, part in value.items()}
        fields = shape.fields
        return {n: _known(part, like.get(n), fields[n]) for n, part in value.items() if n in fields and n in like}
    if isinstance(value, list) and isinstance(like, list) and len(value) == len(like):
        return [_known(part, one, shape.items) for part, one in zip(value, like, strict=True)]
    return value
