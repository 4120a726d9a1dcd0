"""Whether an expression holds for one thing with plain facts: of a device, not of nodes. Pure.

An attribute that isn't there meets no comparison but ``neq`` and ``not_in``, as on nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from weft.language.amount import read_amount
from weft.language.tree import Compare, Either, Every, Exists, Expression, Named, Not, Within

Fact = bool | int | float | str
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def holds(tree: Expression, facts: Mapping[str, Fact]) -> bool:
    """Whether ``tree`` holds. One that names a constraint never does: nothing resolves names here."""
    if isinstance(tree, Every):
        return all(holds(part, facts) for part in tree.of)
    if isinstance(tree, Either):
        return any(holds(part, facts) for part in tree.of)
    if isinstance(tree, Not):
        return not holds(tree.of, facts)
    if isinstance(tree, Named):
        return False
    fact = facts.get(tree.attribute)
    if isinstance(tree, Exists):
        return fact is not None
    if isinstance(tree, Within):
        return any(_is(fact, value) for value in tree.values) is tree.inside
    if tree.operator in ("eq", "neq"):
        return _is(fact, tree.value) is (tree.operator == "eq")
    return _compares(fact, tree)


def _is(fact: Fact | None, value: str) -> bool:
    if fact is None:
        return False
    if isinstance(fact, bool):
        return value.lower() == str(fact).lower()
    if str(fact) == value:
        return True
    number, wanted = _number(fact), read_amount(value)
    return number is not None and number == wanted


def _compares(fact: Fact | None, leaf: Compare) -> bool:
    number, bound = _number(fact), read_amount(leaf.value, leaf.attribute)
    return number is not None and bound is not None and _ORDERS[leaf.operator](number, bound)


def _number(fact: Fact | None) -> float | None:
    if fact is None or isinstance(fact, bool):
        return None
    if isinstance(fact, int) and abs(fact) >= 2**63:
        return None  # no device counts so far, and a float may not hold it
    return read_amount(fact) if isinstance(fact, str) else float(fact)
