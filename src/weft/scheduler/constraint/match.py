"""Constraints over nodes: a tree as one mask over all of them, and why one of them doesn't meet it. Pure.

A constraint's parts on a node's facts and on free capacity (``.free``, ``available``) are two filters, because the one is kept
until a fact changes and the other only until something is placed.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from weft.contracts.policy import Flags, Lack, Reads, Request, Table
from weft.language.amount import read_amount, show_amount
from weft.language.clash import AVAILABLE
from weft.language.tree import (
    SIGNS,
    Compare,
    Either,
    Every,
    Exists,
    Expression,
    Leaf,
    Not,
    Within,
    conjuncts,
    every,
    leaves,
    show,
)

_LONGEST = 300
_COUNTED = ("gpu",)  # a node with none of it doesn't have it
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def find_meeting(tree: Expression, table: Table) -> Flags:
    """Flags of the nodes that meet ``tree``, whose names are resolved."""
    if isinstance(tree, (Every, Either)):
        flags = find_meeting(tree.of[0], table)
        for part in tree.of[1:]:
            more = find_meeting(part, table)
            flags = flags & more if isinstance(tree, Every) else flags | more
        return flags
    if isinstance(tree, Not):
        return ~find_meeting(tree.of, table)
    if isinstance(tree, Exists):
        return _is_there(tree.attribute, table)
    if isinstance(tree, Within):
        found = _is_one_of(tree.attribute, tree.values, table)
        return found if tree.inside else ~found
    if not isinstance(tree, Compare):
        raise LookupError(f"constraint {show(tree)} is not resolved")
    if tree.operator in ("eq", "neq"):
        equal = _is_one_of(tree.attribute, (tree.value,), table)
        return equal if tree.operator == "eq" else ~equal
    numbers, bounds = table.number(tree.attribute), _read_amounts(tree.attribute, (tree.value,))
    if numbers is None or not bounds:
        return np.zeros(len(table.names), dtype=np.bool_)
    compared: Flags = _ORDERS[tree.operator](numbers, bounds[0])  # NaN is neither more nor less
    return compared


def describe_failure(tree: Expression, table: Table, index: int) -> tuple[str, list[Lack]]:
    """Why node ``index`` doesn't meet ``tree``, for people, and which resources it lacks. It must not meet it."""
    if isinstance(tree, Every):
        failing = [part for part in tree.of if not find_meeting(part, table)[index]]
        failures = [describe_failure(part, table, index) for part in failing]
        return "; ".join(text for text, _ in failures), [lack for _, lacks in failures for lack in lacks]
    if isinstance(tree, Either):
        return "none of: " + "; ".join(describe_failure(part, table, index)[0] for part in tree.of), []
    if isinstance(tree, Not):
        first = next(leaves(tree.of))
        has = f"{_show_has(first, table, index)}, " if isinstance(tree.of, (Compare, Within, Exists)) else ""
        return f"{has}wanted {show(tree)}", []
    if isinstance(tree, Exists):
        return f"has no {tree.attribute}", []
    if isinstance(tree, Compare) and tree.operator in _ORDERS:
        return _describe_amount(tree, table, index)
    wanted = show(tree).removeprefix(getattr(tree, "attribute", "")).strip()
    return f"{_show_has(tree, table, index)}, wanted {wanted.removeprefix('=')}", []


class Meets:
    """A constraint's part on a node's facts, or (``now``) on its free capacity."""

    def __init__(self, *, now: bool) -> None:
        self.name = "available" if now else "constraint"
        self.reads: Reads = "row" if now else "facts"
        self._part = 1 if now else 0

    def asks(self, request: Request) -> Expression | None:
        return None if request.constraint is None else split(request.constraint)[self._part]

    def fits(self, table: Table, request: Request) -> Flags:
        return _fits(self.asks(request), table)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return _explain(self.asks(request), table, index)


@functools.lru_cache(maxsize=4096)
def split(tree: Expression) -> tuple[Expression | None, Expression | None]:
    """The part of ``tree`` on facts, and the part on free capacity; both must hold."""
    now = [part for part in conjuncts(tree) if reads_capacity(part)]
    facts = [part for part in conjuncts(tree) if part not in now]
    return (every(facts) if facts else None), (every(now) if now else None)


def _fits(tree: Expression | None, table: Table) -> Flags:
    return np.ones(len(table.names), dtype=np.bool_) if tree is None else find_meeting(tree, table)


def _explain(tree: Expression | None, table: Table, index: int) -> tuple[str, list[Lack]]:
    """The reason, cut to what fits into a decision."""
    if tree is None:
        return "", []
    reason, lacks = describe_failure(tree, table, index)
    return (reason if len(reason) <= _LONGEST else reason[: _LONGEST - 1] + "…"), lacks


@functools.lru_cache(maxsize=4096)
def reads_capacity(tree: Expression) -> bool:
    """Whether it asks for free capacity."""
    return any(map(_is_of_capacity, leaves(tree)))


def _is_of_capacity(leaf: Leaf) -> bool:
    if isinstance(leaf, (Compare, Within, Exists)) and leaf.attribute.endswith(".free"):
        return True
    return (isinstance(leaf, Compare) and leaf.value == AVAILABLE) or (
        isinstance(leaf, Within) and AVAILABLE in leaf.values
    )


def _is_one_of(attribute: str, values: tuple[str, ...], table: Table) -> Flags:
    """Flags of the nodes where the text is one of ``values``, or the number equals one of them."""
    flags: Flags | None = None
    texts = table.text(attribute)
    if texts is not None:
        codes = [code for value in values if (code := texts.places.get(value)) is not None]
        if codes:
            flags = texts.codes == codes[0] if len(codes) == 1 else np.isin(texts.codes, codes)
    wanted = _read_amounts(attribute, values)
    numbers = table.number(attribute) if wanted else None
    if numbers is not None:
        same = numbers == wanted[0] if len(wanted) == 1 else np.isin(numbers, wanted)
        flags = same if flags is None else flags | same
    free = table.number(f"{attribute}.free") if AVAILABLE in values else None
    if free is not None:
        flags = free > 0 if flags is None else flags | (free > 0)
    return np.zeros(len(table.names), dtype=np.bool_) if flags is None else flags


@functools.lru_cache(maxsize=4096)
def _read_amounts(attribute: str, values: tuple[str, ...]) -> list[float]:
    """Those of ``values`` that are numbers. Not to be changed."""
    return [number for value in values if (number := read_amount(value, attribute)) is not None]


def _is_there(attribute: str, table: Table) -> Flags:
    texts, numbers = table.text(attribute), table.number(attribute)
    flags: Flags = np.zeros(len(table.names), dtype=np.bool_) if texts is None else texts.codes >= 0
    if numbers is None:
        return flags
    return flags | (numbers > 0 if attribute in _COUNTED else ~np.isnan(numbers))


def _describe_amount(leaf: Compare, table: Table, index: int) -> tuple[str, list[Lack]]:
    wanted = f"wanted {SIGNS[leaf.operator]} {leaf.value}"
    numbers, bound = table.number(leaf.attribute), read_amount(leaf.value, leaf.attribute)
    if numbers is None or bound is None or np.isnan(numbers[index]):
        return f"{_show_has(leaf, table, index)}, {wanted}", []
    has = float(numbers[index])
    text = f"{leaf.attribute} {show_amount(has, leaf.attribute, leaf.value)}, {wanted}"
    missing = bound - has
    if leaf.operator in ("ge", "gt") and missing > 0:
        text += f" ({show_amount(missing, leaf.attribute, leaf.value)} short)"
    return text, []


def _show_has(leaf: Leaf, table: Table, index: int) -> str:
    """The node's value of the leaf's attribute."""
    attribute = getattr(leaf, "attribute", "")
    texts, numbers = table.text(attribute), table.number(attribute)
    if texts is not None and texts.codes[index] >= 0:
        return f"{attribute} is {texts.words[texts.codes[index]]}"
    if numbers is not None and not np.isnan(numbers[index]):
        return f"{attribute} is {show_amount(float(numbers[index]), attribute)}"
    return f"has no {attribute}"
