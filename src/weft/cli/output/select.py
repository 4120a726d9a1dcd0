"""Parts of a document: ``--json a,b`` (some fields of each object), ``-o template=…`` (a line for each), ``--jq EXPR``
(the program of that name, as a library that is loaded when it is asked for)."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from weft.cli.output.fields import is_list, list_objects, refuse_unknown
from weft.cli.output.jsonpath import find_values, name_fields, write_value
from weft.objects.errors import InvalidInput, Unavailable

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])|\\([nt\\])")
_GO = re.compile(r"\{\{-?\s*(?:[.$][\w.]*|(?:range|end|if|else|with|block|define|template|printf|len|index)\b)")
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def read_fields(text: str) -> list[str]:
    """``name,status.phase`` as paths. Raises UsageError for none."""
    paths = [part.strip().lstrip(".") for part in text.split(",") if part.strip(". ")]
    if not paths:
        raise click.UsageError("--json: name the fields, like --json name,status.phase")
    return paths


def pick_fields(document: Any, paths: Sequence[str], listed: Sequence[str] = ()) -> Any:
    """``document`` with only the fields at ``paths`` of each object in it, null where one isn't there. Raises UsageError for a
    field that none of them can have."""
    refuse_unknown("--json", (path.split(".") for path in paths), document, listed)
    picked = [_pick(obj, paths) for obj in list_objects(document)]
    return {"items": picked} if is_list(document) else picked[0]


def _pick(obj: Any, paths: Sequence[str]) -> dict[str, Any]:
    picked: dict[str, Any] = {}
    for path in paths:
        *way, last = path.split(".")
        source, place = obj, picked
        for step in way:
            source = source.get(step) if isinstance(source, Mapping) else None
            place = place.setdefault(step, {})
        place[last] = source.get(last) if isinstance(source, Mapping) else None
    return picked


def write_template(template: str, document: Any, listed: Sequence[str] = ()) -> str:
    """A line for each object of ``document``: ``{status.node}`` stands for that field, ``{{`` for a brace, ``\\n`` and ``\\t`` for
    what they are elsewhere. Raises InvalidInput, and UsageError for a field that none of them can have."""
    if foreign := _GO.search(template):
        raise InvalidInput(
            f"template {template[:80]!r}: {foreign[0]} is of Go's templates, which weft doesn't read",
            field="template",
            hint="write '{name} is on {status.node}': it is printed for each object, without a range",
        )
    for match in _PLACE.finditer(template):
        if match[2] or match[0] == "{}":
            raise InvalidInput(
                f"template {template[:80]!r}: unbalanced braces, or no field in them",
                field="template",
                hint="write fields like {name} or {status.node}, and {{ for a brace itself",
            )
    objects = list_objects(document)
    named = (name_fields(match[1].strip()) for match in _PLACE.finditer(template) if match[1] is not None)
    refuse_unknown("template", (path for path in named if path is not None), document, listed)
    return "".join(_PLACE.sub(_filler(obj), template) + "\n" for obj in objects)


def _filler(obj: Any) -> Callable[[re.Match[str]], str]:
    def fill(match: re.Match[str]) -> str:
        if match[3]:
            return _ESCAPES[match[3]]
        if match[1] is None:
            return match[0][0]
        return ",".join(write_value(value) for value in find_values(match[1].strip(), obj))

    return fill


def run_jq(expression: str, document: bytes) -> Iterator[str]:
    """Return what jq makes of ``document`` (JSON), a line for each result; text has no quotes. Raises UsageError for an expression
    that it can't read, InvalidInput for one that fails, Unavailable where the library isn't installed."""
    try:
        library = importlib.import_module("jq")
    except ImportError:
        raise Unavailable(
            "--jq needs the Python package jq, which isn't installed",
            reason="missingPackage",
            hint="pip install jq, or use -o jsonpath=… or --json FIELDS",
        ) from None
    try:
        program = library.compile(expression)
    except ValueError as problem:
        raise click.UsageError(f"--jq {expression!r}: {_first_line(problem)}") from None
    try:
        for one in program.input_text(document.decode()):
            yield one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)
    except ValueError as problem:
        hint = 'this JSON is {"items": […]}: begin with .items[]' if document.lstrip().startswith(b'{"items"') else ""
        raise InvalidInput(f"--jq {expression!r}: {_first_line(problem)}", field="jq", hint=hint) from None


def _first_line(problem: Exception) -> str:
    lines = [line for line in str(problem).splitlines() if line.strip()]
    return lines[0].removeprefix("jq: error: ") if lines else "can't be read"
