"""``-o jsonpath=…`` as kubectl reads it: text with ``{paths}`` into the object, ``{range …}{end}``, ``{"\\n"}``. Pure.

A path is ``.a.b``, ``['a']``, ``[0]``, ``[-1]``, ``[1:3]``, ``[*]``, ``.*``, ``..a`` or ``[?(@.a=="b")]``; what isn't there is
nothing, and a field that no such object can have is refused. Several values are set apart by blanks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from weft.cli.output.fields import is_list, refuse_unknown
from weft.objects.errors import InvalidInput

_PART = re.compile(r"\{((?:[^{}\"']|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')*)\}|([^{}]+)|([{}])", re.S)
_STEP = re.compile(
    r"""(?P<deep>\.\.)(?P<below>(?:[^.\[\]\\]|\\.)+|\*)
    | \.(?P<name>\*|(?:[^.\[\]\\]|\\.)+)
    | \[\?\((?P<test>(?:[^()"']|"[^"]*"|'[^']*')*)\)\]
    | \[(?P<inside>(?:[^\[\]"']|"[^"]*"|'[^']*')*)\]""",
    re.X,
)
_TEST = re.compile(r"\s*@(?P<path>[^=!<>\s]*)\s*(?:(?P<sign>==|!=|<=|>=|<|>)\s*(?P<value>.+?)\s*)?", re.S)
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
Node = tuple[str, Any]  # ("text", str), ("path", (path, steps)) or ("range", ((path, steps), nodes))
PathStep = Callable[[Any], Iterator[Any]]


def write_jsonpath(expression: str, value: Any, listed: Sequence[str] = ()) -> str:
    """Write what ``expression`` makes of ``value``. Raises InvalidInput for one that can't be read, UsageError for a field that no
    object of ``value``, a list of kinds ``listed``, can have."""
    whole = expression if "{" in expression else "{" + expression + "}"
    nodes, rest = _read_nodes(_split(whole, expression), expression)
    if rest is not None:
        raise _bad(expression, "{end} has no {range}")
    named = [path for path in _list_fields(nodes, []) if path]
    if is_list(value):
        if lost := next((path for path in named if path[0] != "items"), None):
            raise click.UsageError(f"jsonpath {lost[0][:60]}: no such field; this is a list: begin with .items[*]")
        named = [path[1:] for path in named]
    refuse_unknown("jsonpath", named, value, listed)
    return _write(nodes, value)


def name_fields(path: str) -> list[str] | None:
    """The names on a ``path``, without its places in lists; None if it leads to any field, or to any depth. Raises InvalidInput."""
    names: list[str] = []
    for match in _STEP.finditer(_begin(path)):
        inside = (match["inside"] or "").strip()
        if match["deep"] or match["name"] == "*":
            return None
        if match["name"] is not None:
            names.append(_plain(match["name"]))
        elif inside[:1] in ("'", '"'):
            names.append(inside[1:-1])
    return names


def _list_fields(nodes: list[Node], before: list[str]) -> Iterator[list[str]]:
    """List what each path in ``nodes`` names, from the top."""
    for kind, node in nodes:
        if kind == "text":
            continue
        (path, _), below = (node, None) if kind == "path" else node
        names = name_fields(path)
        if names is None:
            continue
        whole = names if path.startswith("$") else [*before, *names]
        yield whole
        if below is not None:
            yield from _list_fields(below, whole)


def find_values(path: str, value: Any) -> list[Any]:
    """The values at one ``path`` in ``value``. Raises InvalidInput."""
    return _walk(_read_path(path, path), value)


def write_value(value: Any) -> str:
    """One value as text: strings and numbers as they are, what has parts as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _bad(expression: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"jsonpath {expression[:80]!r}: {why}",
        field="jsonpath",
        hint="write it like '{.items[*].name}' or '{range .items[*]}{.name}{\"\\n\"}{end}'",
    )


def _split(text: str, expression: str) -> Iterator[tuple[str, bool]]:
    """The pieces of ``text``: (what stands in braces, True) or (text outside of them, False)."""
    for match in _PART.finditer(text):
        if match[3]:
            raise _bad(expression, f"unbalanced {match[3]}")
        yield (match[2], False) if match[2] is not None else (match[1].strip(), True)


def _read_nodes(pieces: Iterator[tuple[str, bool]], expression: str) -> tuple[list[Node], str | None]:
    """The nodes up to ``{end}`` (which is given back then) or the end of the text (None)."""
    nodes: list[Node] = []
    for piece, inside in pieces:
        if not inside:
            nodes.append(("text", piece))
        elif piece == "end":
            return nodes, piece
        elif piece.startswith("range ") or piece == "range":
            path = piece.removeprefix("range").strip()
            steps = _read_path(path, expression)
            below, end = _read_nodes(pieces, expression)
            if end is None:
                raise _bad(expression, "{range} has no {end}")
            nodes.append(("range", ((path, steps), below)))
        elif piece[:1] in ("'", '"'):
            nodes.append(("text", _read_text(piece, expression)))
        else:
            nodes.append(("path", (piece, _read_path(piece, expression))))
    return nodes, None


def _read_text(piece: str, expression: str) -> str:
    quoted = piece if piece[0] == '"' else '"' + piece[1:-1].replace('"', '\\"') + '"'
    try:
        return str(json.loads(quoted))
    except ValueError:
        raise _bad(expression, f"{piece[:40]} is not a string") from None


def _read_path(path: str, expression: str) -> list[PathStep]:
    rest = _begin(path)
    steps: list[PathStep] = []
    at = 0
    if rest == ".":
        return steps
    while at < len(rest):
        match = _STEP.match(rest, at)
        if match is None:
            raise _bad(expression, f"can't read {rest[at:][:40]!r}")
        steps.append(_read_step(match, expression))
        at = match.end()
    return steps


def _begin(path: str) -> str:
    """``path`` with the first step as the others."""
    rest = path[1:] if path[:1] in ("$", "@") else path
    return f".{rest}" if rest and rest[0] not in ".[" else rest


def _read_step(match: re.Match[str], expression: str) -> PathStep:
    if match["deep"]:
        return _below(_plain(match["below"]))
    if match["name"] is not None:
        return _each if match["name"] == "*" else _named(_plain(match["name"]))
    if match["test"] is not None:
        return _tested(match["test"], expression)
    inside = match["inside"].strip()
    if inside == "*":
        return _each
    if inside[:1] in ("'", '"'):
        return _named(inside[1:-1])
    if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", inside):
        return _at([int(number) for number in inside.split(",")])
    if re.fullmatch(r"(-?\d*)(:-?\d*){1,2}", inside):
        return _sliced(slice(*(int(number) if number else None for number in inside.split(":"))))
    raise _bad(expression, f"can't read [{inside[:40]}]")


def _plain(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _each(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _named(name: str) -> PathStep:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _below(name: str) -> PathStep:
    """A step to any depth: what is called so, or all there is."""

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]
        for inner in _each(value):
            if name == "*":
                yield inner
            yield from step(inner)

    return step


def _at(places: list[int]) -> PathStep:
    def step(value: Any) -> Iterator[Any]:
        for place in places if isinstance(value, list) else ():
            if -len(value) <= place < len(value):
                yield value[place]

    return step


def _sliced(part: slice) -> PathStep:
    return lambda value: iter(value[part] if isinstance(value, list) and part.step != 0 else [])


def _tested(text: str, expression: str) -> PathStep:
    match = _TEST.fullmatch(text)
    if match is None:
        raise _bad(expression, f"can't read the test ?({text[:40]})")
    steps = _read_path(match["path"], expression)
    if match["sign"] is None:
        return lambda value: (item for item in _each(value) if _walk(steps, item))
    sign, wanted = _SIGNS[match["sign"]], _read_value(match["value"], expression)

    def holds(found: Any) -> bool:
        try:
            return sign(found, wanted)
        except TypeError:  # a text is neither more nor less than a number
            return False

    return lambda value: (item for item in _each(value) if any(holds(found) for found in _walk(steps, item)))


def _read_value(text: str, expression: str) -> Any:
    try:
        return _read_text(text, expression) if text[:1] in ("'", '"') else json.loads(text)
    except ValueError:
        raise _bad(expression, f"{text[:40]} is not a value: put text in quotes") from None


def _walk(steps: list[PathStep], value: Any) -> list[Any]:
    values = [value]
    for step in steps:
        values = [found for one in values for found in step(one)]
    return values


def _write(nodes: list[Node], value: Any) -> str:
    parts: list[str] = []
    for kind, node in nodes:
        if kind == "text":
            parts.append(node)
        elif kind == "path":
            parts.append(" ".join(write_value(found) for found in _walk(node[1], value)))
        else:
            (_, steps), below = node
            parts += [_write(below, found) for found in _walk(steps, value)]
    return "".join(parts)
