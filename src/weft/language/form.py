"""The JSON form of a constraint, and back: ``{"attribute": "memory", "op": "ge", "value": "32GB"}``,
``{"op": "and", "of": […]}``. Pure.

Reads other programs' spelling, too: left, operator, right, sub_expressions, logical_operator, in any case.
"""

from __future__ import annotations

from typing import Any

from weft.language.parse import DEEPEST, MOST_PARTS, parse
from weft.language.tree import (
    SIGNS,
    Compare,
    Either,
    Every,
    Exists,
    Expression,
    Named,
    Not,
    Operator,
    Within,
    either,
    every,
    leaves,
    show,
)
from weft.objects.errors import InvalidInput
from weft.objects.schema import suggest

_KEYS = {
    **dict.fromkeys(("attribute", "left", "key"), "attribute"),
    **dict.fromkeys(("op", "operator"), "op"),
    **dict.fromkeys(("value", "values", "right"), "value"),
    **dict.fromkeys(("of", "subexpressions", "expressions"), "of"),
    "logicaloperator": "logic",
    "constraint": "constraint",
}
_SAME = {"=": "eq", "==": "eq", "!=": "neq", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_OPERATORS: dict[str, Operator] = {operator: operator for operator in SIGNS}
_ALL = ("and", "or", "not", *_OPERATORS, "in", "not_in", "exists")


def read_form(raw: Any, field: str = "constraint") -> Expression:
    """The tree of a JSON form, or of a text. Raises InvalidInput with the path of the wrong part."""
    if isinstance(raw, str):
        return parse(raw, field).tree
    tree = _read(raw, field, 0)
    return parse(show(tree), field).tree  # the limits and rules of the text apply to both


def make_form(tree: Expression) -> dict[str, Any]:
    """The tree as plain data."""
    if isinstance(tree, Every):
        return {"op": "and", "of": [make_form(part) for part in tree.of]}
    if isinstance(tree, Either):
        return {"op": "or", "of": [make_form(part) for part in tree.of]}
    if isinstance(tree, Not):
        return {"op": "not", "of": [make_form(tree.of)]}
    if isinstance(tree, Named):
        return {"constraint": tree.name}
    if isinstance(tree, Exists):
        return {"attribute": tree.attribute, "op": "exists"}
    if isinstance(tree, Within):
        return {"attribute": tree.attribute, "op": "in" if tree.inside else "not_in", "value": list(tree.values)}
    return {"attribute": tree.attribute, "op": tree.operator, "value": tree.value}


def _read(raw: Any, path: str, depth: int) -> Expression:
    if depth > DEEPEST:
        raise InvalidInput(f"{path[:200]}: nested deeper than {DEEPEST}", field=path[:200], hint="nest less deeply")
    if isinstance(raw, str):
        return parse(raw, path).tree
    given = _fields(raw, path)
    if "constraint" in given:
        return Named(_text(given["constraint"], f"{path}.constraint"))
    op = given.get("op", given.get("logic", "and" if "of" in given else ""))
    op = op.strip().lower()[:40] if isinstance(op, str) else "?"
    op = _SAME.get(op, op)
    if "of" in given:
        return _join(op, given["of"], f"{path}.of", depth)
    if op not in _ALL or op in ("and", "or", "not"):
        if op in ("and", "or", "not"):
            raise InvalidInput(f"{path}.of is missing", field=f"{path}.of", hint=f"give what {op} applies to")
        meant = suggest(op, list(_ALL))
        raise InvalidInput(
            f"{path}.op: {op[:40]!r} is not an operator" if op else f"{path}.op is missing",
            field=f"{path}.op",
            hint=f"did you mean {meant}?" if meant else "operators: " + ", ".join(_ALL),
        )
    if "attribute" not in given:
        raise InvalidInput(
            f"{path}.attribute is missing", field=f"{path}.attribute", hint="name the attribute to compare"
        )
    attribute = _text(given["attribute"], f"{path}.attribute")
    if op == "exists":
        return Exists(attribute)
    if "value" not in given:
        raise InvalidInput(f"{path}.value is missing", field=f"{path}.value", hint="give the value to compare with")
    value, at = given["value"], f"{path}.value"
    if op in ("in", "not_in"):
        if not isinstance(value, list) or not value:
            raise InvalidInput(f"{at} must be a list of one value or more", field=at)
        return Within(attribute, tuple(_text(item, f"{at}[{i}]") for i, item in enumerate(value)), op == "in")
    return Compare(attribute, _OPERATORS[op], _text(value, at))


def _join(op: str, of: Any, path: str, depth: int) -> Expression:
    items = of if isinstance(of, list) else [of]
    if not items or len(items) > MOST_PARTS:
        raise InvalidInput(f"{path} must have 1 to {MOST_PARTS} parts", field=path)
    parts = [_read(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
    if sum(1 for part in parts for _ in leaves(part)) > MOST_PARTS:
        raise InvalidInput(
            f"{path[:200]}: more than {MOST_PARTS} comparisons", field=path[:200], hint="shorten the expression"
        )
    if op == "and":
        return every(parts)
    if op == "or":
        return either(parts)
    if op == "not" and len(parts) == 1:
        return Not(parts[0])
    fact = "not takes one part" if op == "not" else f"{op[:40]!r} can't join parts"
    raise InvalidInput(f"{path}: {fact}", field=path, hint="join with and, or; not takes one part")


def _fields(raw: Any, path: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidInput(
            f"{path[:200]} must be text or a set of fields", field=path[:200], hint='like "storage=nvme" or {"op": …}'
        )
    given: dict[str, Any] = {}
    for key, value in raw.items():
        known = _KEYS.get(str(key).lower().replace("_", "")) if len(str(key)) < 40 else None
        if known is None:
            at = f"{path}.{str(key)[:40]}"
            raise InvalidInput(f"{at} is not a field", field=at, hint="fields: attribute, op, value, of, constraint")
        if value not in (None, "", []) or known == "value":  # other programs leave unused fields empty
            given[known] = value
    return given


def _text(value: Any, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        try:
            return f"{value:.15g}" if isinstance(value, float) else str(value)
        except ValueError:  # a number so large that Python won't print it
            value = None
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidInput(f"{path} must be text or a number", field=path)
    return value
