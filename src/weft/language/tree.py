"""The tree of a constraint, and its text. Equal constraints are equal trees: positions are no part of them. Pure.

What each leaf means on a node:
  Compare  eq: the attribute's text is the value, or its number the value's; neq: it isn't (or is missing);
           lt le gt ge: its number is less than the value's, …
  Within   one of the values, in the sense of eq; ``inside`` False: none of them (or the attribute is missing)
  Exists   the node has the attribute at all
  Named    a Constraint object of the project, or PROJECT/NAME of another, which stands for its expression
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import msgspec

Operator = Literal["eq", "neq", "lt", "le", "gt", "ge"]
SIGNS: dict[Operator, str] = {"eq": "=", "neq": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
RESERVED = ("and", "or", "not", "in", "not_in", "exists", *SIGNS)
_BARE = re.compile(r"[A-Za-z0-9._/:%+-]+")


class Compare(msgspec.Struct, frozen=True, cache_hash=True):
    attribute: str
    operator: Operator
    value: str


class Within(msgspec.Struct, frozen=True, cache_hash=True):
    attribute: str
    values: tuple[str, ...]
    inside: bool = True


class Exists(msgspec.Struct, frozen=True, cache_hash=True):
    attribute: str


class Named(msgspec.Struct, frozen=True, cache_hash=True):
    name: str


class Every(msgspec.Struct, frozen=True, cache_hash=True):
    """All of ``of``: two or more, none of them an Every."""

    of: tuple[Expression, ...]


class Either(msgspec.Struct, frozen=True, cache_hash=True):
    """A choice: at least one of ``of``: two or more, none of them an Either."""

    of: tuple[Expression, ...]


class Not(msgspec.Struct, frozen=True, cache_hash=True):
    of: Expression


Leaf: TypeAlias = Compare | Within | Exists | Named
Expression: TypeAlias = Leaf | Every | Either | Not


class Preference(msgspec.Struct, frozen=True, cache_hash=True):
    """A soft constraint."""

    expression: Expression
    weight: float = 0.5  # 0–1, against the strategy's 1
    priority: int = 0  # a preference with a higher one is dropped later


def every(parts: list[Expression]) -> Expression:
    """All of them as one tree, flat."""
    flat = [item for part in parts for item in (part.of if isinstance(part, Every) else (part,))]
    return flat[0] if len(flat) == 1 else Every(tuple(flat))


def either(parts: list[Expression]) -> Expression:
    """Any of them as one tree, flat."""
    flat = [item for part in parts for item in (part.of if isinstance(part, Either) else (part,))]
    return flat[0] if len(flat) == 1 else Either(tuple(flat))


def conjuncts(tree: Expression) -> tuple[Expression, ...]:
    """The conditions that must all hold for ``tree`` to hold."""
    return tree.of if isinstance(tree, Every) else (tree,)


def leaves(tree: Expression) -> Iterator[Leaf]:
    """The leaves in the order in which they are written."""
    if isinstance(tree, (Every, Either)):
        for part in tree.of:
            yield from leaves(part)
    elif isinstance(tree, Not):
        yield from leaves(tree.of)
    else:
        yield tree


def attributes_of(tree: Expression) -> list[str]:
    """The attributes it reads, each once."""
    return list(dict.fromkeys(leaf.attribute for leaf in leaves(tree) if not isinstance(leaf, Named)))


def names_in(tree: Expression) -> list[str]:
    """The Constraint objects it names, each once."""
    return list(dict.fromkeys(leaf.name for leaf in leaves(tree) if isinstance(leaf, Named)))


def replace_named(tree: Expression, find: Callable[[str], Expression]) -> Expression:
    """``tree`` with every Named leaf replaced by what ``find`` gives for its name."""
    if isinstance(tree, Named):
        return find(tree.name)
    if isinstance(tree, Every):
        return every([replace_named(part, find) for part in tree.of])
    if isinstance(tree, Either):
        return either([replace_named(part, find) for part in tree.of])
    if isinstance(tree, Not):
        return Not(replace_named(tree.of, find))
    return tree


def show(tree: Expression) -> str:
    """The tree as text that reads back as the same tree."""
    if isinstance(tree, Every):
        return " AND ".join(f"({show(part)})" if isinstance(part, Either) else show(part) for part in tree.of)
    if isinstance(tree, Either):
        return " OR ".join(show(part) for part in tree.of)
    if isinstance(tree, Not):
        return f"NOT ({show(tree.of)})" if isinstance(tree.of, (Every, Either)) else f"NOT {show(tree.of)}"
    if isinstance(tree, Named):
        return f"@{tree.name}"
    if isinstance(tree, Exists):
        return f"exists({_quote(tree.attribute)})"
    if isinstance(tree, Within):
        values = ",".join(map(_quote, tree.values))
        return f"{_quote(tree.attribute)} {'in' if tree.inside else 'not_in'} ({values})"
    return f"{_quote(tree.attribute)}{SIGNS[tree.operator]}{_quote(tree.value)}"


def show_short(tree: Expression, most: int = 60) -> str:
    """The beginning of its text, enough to recognise it."""
    text = show(tree)
    return text if len(text) <= most else text[: most - 1] + "…"


def _quote(word: str) -> str:
    if _BARE.fullmatch(word) and word.lower() not in RESERVED:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
