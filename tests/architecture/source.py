"""The product's source as these tests read it: each file is read and parsed once."""

from __future__ import annotations

import ast
import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound=ast.AST)
_LEAVES = {ast.Name, ast.Load, ast.Store, ast.Del}

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "weft"
FILES = sorted(SOURCE.rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@contextmanager
def no_garbage() -> Iterator[None]:
    """What is kept to the end is garbage never; looking through it again and again takes four times as long as to parse it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # else all of it is looked at once more now
        if was_enabled:
            gc.enable()


@cache
@no_garbage()
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def nodes_of(path: Path, *types: type[T]) -> Iterator[T]:
    """Every node of a file that is one of ``types``, those of one type in the order of ``ast.walk``."""
    known = _nodes_by_type(path)
    return chain.from_iterable(known.get(type_, ()) for type_ in types)  # type: ignore[arg-type]


@cache
@no_garbage()
def _nodes_by_type(path: Path) -> dict[type, list[ast.AST]]:
    """Each file is walked once, which takes as long as to parse it; names, most of all nodes, are left out."""
    found: dict[type, list[ast.AST]] = defaultdict(list)
    waiting: list[ast.AST] = [tree_of(path)]
    for node in waiting:  # grows meanwhile
        found[type(node)].append(node)
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                waiting.extend([one for one in value if isinstance(one, ast.AST) and type(one) not in _LEAVES])
            elif isinstance(value, ast.AST) and type(value) not in _LEAVES:
                waiting.append(value)
    return found


def files_of(*rooms: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(SOURCE).parts[0] in rooms]
