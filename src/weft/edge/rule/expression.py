"""A rule's condition, as a function over a device's values: the meaning of weft's constraint grammar without a node. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt
from typing import TypeAlias

from weft.contracts.device import Value
from weft.kinds.fields.device.register import list_held
from weft.language.amount import read_amount
from weft.language.parse import read_expression
from weft.language.tree import Compare, Either, Every, Exists, Expression, Named, Not, Within
from weft.objects.errors import InvalidInput

Condition: TypeAlias = Callable[[Mapping[str, Value]], bool]
_ORDER = {"lt": lt, "le": le, "gt": gt, "ge": ge}


def compile_condition(text: str, field: str = "spec.when") -> tuple[Condition, Expression]:
    """``text`` as a function and as a tree. Raises InvalidInput that points at the character."""
    tree = read_expression(text, field)
    return _compile(tree, field), tree


def _compile(tree: Expression, field: str) -> Condition:
    if isinstance(tree, Every):
        every = [_compile(part, field) for part in tree.of]
        return lambda values: all(part(values) for part in every)
    if isinstance(tree, Either):
        either = [_compile(part, field) for part in tree.of]
        return lambda values: any(part(values) for part in either)
    if isinstance(tree, Not):
        inner = _compile(tree.of, field)
        return lambda values: not inner(values)
    if isinstance(tree, Named):
        raise InvalidInput(
            f"{field}: a rule can't name a constraint (@{tree.name})", field=field, hint="write out what must hold"
        )
    name = tree.attribute
    if isinstance(tree, Exists):
        return lambda values: name in values
    if isinstance(tree, Within):
        equals = [_make_equal(value) for value in tree.values]
        inside = tree.inside
        return lambda values: (name in values and any(equal(values[name]) for equal in equals)) is inside
    return _compile_comparison(tree)


def _compile_comparison(tree: Compare) -> Condition:
    name, operator = tree.attribute, tree.operator
    if operator in ("eq", "neq"):
        equal, wanted = _make_equal(tree.value), operator == "eq"
        return lambda values: (name in values and equal(values[name])) is wanted
    bound, order = read_amount(tree.value, name), _ORDER[operator]
    assert bound is not None  # the parser refuses any other

    def compare(values: Mapping[str, Value]) -> bool:
        value = _read_number(values.get(name))
        return value is not None and order(value, bound)

    return compare


def _make_equal(text: str) -> Callable[[Value], bool]:
    number = read_amount(text)
    held = () if number is None else (*list_held("", number),)  # 229.01 of a device with 32 bits is 229.00999450683594

    def equal(value: Value) -> bool:
        if isinstance(value, bool):
            return text.lower() == ("true" if value else "false")
        if isinstance(value, str) and value == text:
            return True
        return number is not None and _read_number(value) in held

    return equal


def _read_number(value: Value | None) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    return read_amount(value) if isinstance(value, str) else float(value)
