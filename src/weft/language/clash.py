"""Contradictions: two parts of a constraint, or of several that must all hold, that no node can meet together. Pure.

Checks each way in which the whole could hold (one part of each ``OR``); there is a contradiction if every way has one. Only
certain facts count: an attribute's value is one text, or absent; a number if the text reads as one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import msgspec

from weft.language.amount import read_amount
from weft.language.parse import Parsed
from weft.language.tree import Compare, Either, Every, Exists, Expression, Leaf, Named, Not, Within
from weft.objects.errors import InvalidInput

AVAILABLE = "available"  # a value that doesn't mean equality
_MOST_WAYS = 64
_SHOWN = 80
_MOST_PAIRS = 20_000
_Key: TypeAlias = float | str  # two values are equal if their numbers are, or otherwise their texts


class ClashPart(msgspec.Struct, frozen=True):
    """A leaf, as it must hold (or, ``negated``, must not), and where it was written."""

    leaf: Leaf
    negated: bool
    text: str
    at: int
    source: str  # the Constraint object's name; empty: the workload's own


class _Bounds(msgspec.Struct, frozen=True):
    """The values of one attribute that a part allows."""

    values: frozenset[_Key] | None = None  # only these
    excluded: frozenset[_Key] = frozenset()
    low: float = -math.inf
    high: float = math.inf
    open: bool = False  # without ``low`` and ``high`` themselves
    number: bool = False
    absent: bool = False  # the attribute may be missing
    present: bool = True  # the attribute may be there


def find_clash(sources: Sequence[tuple[str, Parsed]]) -> tuple[ClashPart, ClashPart] | None:
    """Two parts that no node can meet together, where all ``sources`` (a Constraint's name or "", and it) must hold."""
    ways: list[tuple[ClashPart, ...]] = [()]
    for name, parsed in sources:
        spans = iter(parsed.spans)
        more = _ways(parsed.tree, False, parsed.text, name, spans)
        if more is None or len(ways) * len(more) > _MOST_WAYS:
            return None
        ways = [(*way, *other) for way in ways for other in more]
    if sum(len(way) ** 2 for way in ways) > _MOST_PAIRS:
        return None
    found = [_find_in(way) for way in ways]
    return None if not found or None in found else found[0]


def refuse_clash(sources: Sequence[tuple[str, Parsed]], field: str) -> None:
    """Raise InvalidInput, naming both, if two parts can't both hold."""
    clash = find_clash(sources)
    if clash is None:
        return
    first, second = clash
    mine = (
        second if not second.source or first.source else first
    )  # the error points into the text that is being written
    text = next(parsed.text for name, parsed in sources if name == mine.source)
    raise InvalidInput(
        f"{field}: no node can meet both {_render_part(first)} and {_render_part(second)}",
        reason="contradiction",
        field=field,
        hint="join them with OR, or leave one out",
        details={"expression": text, "at": mine.at, "length": len(mine.text)},
    )


def _render_part(part: ClashPart) -> str:
    where = f"character {part.at + 1}" + (f" of constraint {part.source}" if part.source else "")
    shown = part.text if len(part.text) <= _SHOWN else part.text[:_SHOWN] + "…"
    return f"{'NOT ' * part.negated}{shown} ({where})"


def _ways(
    tree: Expression, negated: bool, text: str, source: str, spans: Iterator[tuple[int, int]]
) -> list[tuple[ClashPart, ...]] | None:
    """The ways in which ``tree`` holds, each as the parts that hold then; None if there are too many."""
    if isinstance(tree, Not):
        return _ways(tree.of, not negated, text, source, spans)
    if not isinstance(tree, (Every, Either)):
        at, length = next(spans)
        return [(ClashPart(tree, negated, text[at : at + length], at, source),)]
    parts = [_ways(part, negated, text, source, spans) for part in tree.of]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if isinstance(tree, Either) is not negated:
        ways = list(itertools.chain.from_iterable(known))
        return ways if len(ways) <= _MOST_WAYS else None
    if math.prod(map(len, known)) > _MOST_WAYS:
        return None
    return [tuple(itertools.chain.from_iterable(choice)) for choice in itertools.product(*known)]


def _find_in(way: Sequence[ClashPart]) -> tuple[ClashPart, ClashPart] | None:
    """The first two of these parts that exclude each other."""
    by_attribute: dict[str, list[tuple[ClashPart, _Bounds]]] = {}
    for part in way:
        if not isinstance(part.leaf, Named):
            bounds = _bounds(part.leaf, part.negated)
            if bounds is not None:
                by_attribute.setdefault(part.leaf.attribute, []).append((part, bounds))
    for parts in by_attribute.values():
        for (first, one), (second, two) in itertools.combinations(parts, 2):
            if _exclude(one, two):
                return first, second
        for part, bounds in parts:
            left = bounds.values
            for other, others in parts:
                if left is not None and other is not part:
                    left = frozenset(value for value in left if _allows(others, value))
                    if not left:
                        return (part, other) if part.at <= other.at else (other, part)
    return None


def _bounds(leaf: Leaf, negated: bool) -> _Bounds | None:
    if isinstance(leaf, Exists):
        return _Bounds(absent=negated, present=not negated)
    if isinstance(leaf, Within):
        if AVAILABLE in leaf.values:
            return None
        inside = leaf.inside is not negated
        keys = frozenset(_key(leaf.attribute, value) for value in leaf.values)
        return _Bounds(values=keys) if inside else _Bounds(excluded=keys, absent=True)
    if not isinstance(leaf, Compare) or leaf.value == AVAILABLE:
        return None
    if leaf.operator in ("eq", "neq"):
        equal = (leaf.operator == "eq") is not negated
        key = frozenset((_key(leaf.attribute, leaf.value),))
        return _Bounds(values=key) if equal else _Bounds(excluded=key, absent=True)
    bound = read_amount(leaf.value, leaf.attribute)
    if bound is None:
        return None
    upper, open_ = leaf.operator in ("lt", "le"), leaf.operator in ("lt", "gt")
    if negated:  # a node without that number meets it, too
        upper, open_ = not upper, not open_
    return _Bounds(
        low=-math.inf if upper else bound,
        high=bound if upper else math.inf,
        open=open_,
        number=not negated,
        absent=negated,
    )


def _key(attribute: str, value: str) -> _Key:
    number = read_amount(value, attribute)
    return value if number is None else number


def _allows(bounds: _Bounds, value: _Key) -> bool:
    if not bounds.present or value in bounds.excluded or (bounds.values is not None and value not in bounds.values):
        return False
    if isinstance(value, str):
        return not bounds.number
    return bounds.low < value < bounds.high or (not bounds.open and value in (bounds.low, bounds.high))


def _exclude(one: _Bounds, two: _Bounds) -> bool:
    if one.absent and two.absent:
        return False
    if not one.present or not two.present:
        return True  # one wants it absent, the other doesn't
    for first, second in ((one, two), (two, one)):
        if first.values is not None:
            return not any(_allows(second, value) for value in first.values)
    low, high = max(one.low, two.low), min(one.high, two.high)
    if low == high:
        return any(bounds.open and low in (bounds.low, bounds.high) for bounds in (one, two))
    return low > high
