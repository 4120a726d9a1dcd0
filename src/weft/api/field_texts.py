"""The comments of structs' fields, as descriptions for the API's document: a field is explained once, beside itself.

A field's comment stands on its line, or on the lines right above it. Reads the sources of modules, each once.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect as mi

_FOR_TOOLS = re.compile(r"(noqa|fmt:|type:|ruff:|pragma:)")


def find_structs(types: list[Any]) -> set[type]:
    """The structs of ``types``, and those of their fields, at any depth."""
    found: set[type] = set()
    waiting: list[Any] = list(mi.multi_type_info(types))
    while waiting:
        info = waiting.pop()
        if isinstance(info, mi.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
        if isinstance(info, (mi.Type, mi.Field)):
            waiting += msgspec.structs.astuple(info)
        elif isinstance(info, (tuple, list)):
            waiting += info
    return found


def describe_struct(cls: type) -> dict[str, str]:
    """The text of each field of ``cls`` that has a comment, by the field's name in JSON."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if issubclass(base, msgspec.Struct)][:-1]):
        texts |= _read_comments(base.__module__).get(base.__name__, {})
    names = zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True)  # type: ignore[attr-defined]
    return {encoded: texts[name] for name, encoded in names if name in texts}


@functools.cache
def _read_comments(module: str) -> dict[str, dict[str, str]]:
    """The texts of the fields of a module's classes; empty for a module without a source file."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {node.name: dict(_find_texts(node, comments)) for node in classes}


def _find_texts(cls: ast.ClassDef, comments: dict[int, tuple[str, bool]]) -> Iterator[tuple[str, str]]:
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text, _ = comments.get(node.end_lineno or node.lineno, ("", False))
            row, above = node.lineno - 1, ""
            while (line := comments.get(row, ("", False)))[1]:
                above = f"{line[0]} {above}".strip()
                row -= 1
            if (text := text or above) and not _FOR_TOOLS.match(text):
                yield node.target.id, re.sub(r"\bNone\b", "null", text.replace("``", "`"))
