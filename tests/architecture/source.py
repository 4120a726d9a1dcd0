"""The product's source as these tests read it: each file is read and parsed once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "weft"
FILES = sorted(SOURCE.rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Every node of a file, in the order of ``ast.walk``."""
    return list(ast.walk(tree_of(path)))


def files_of(*rooms: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(SOURCE).parts[0] in rooms]
