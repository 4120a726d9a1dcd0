"""``--jq EXPR``: the program of that name, as a library; it is loaded when it is asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator

import click

from weft.objects.errors import InvalidInput, Unavailable


def run_jq(expression: str, document: bytes) -> Iterator[str]:
    """What jq makes of ``document`` (JSON), a line for each result; text has no quotes. Raises UsageError for an expression
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
        raise InvalidInput(f"--jq {expression!r}: {_first_line(problem)}", field="jq") from None


def _first_line(problem: Exception) -> str:
    lines = [line for line in str(problem).splitlines() if line.strip()]
    return lines[0].removeprefix("jq: error: ") if lines else "can't be read"
