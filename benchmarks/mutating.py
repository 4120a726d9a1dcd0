"""Small faults, made in the text of a module: what somebody might have mistyped, or forgotten. Pure."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator

import msgspec

FLIPPED: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
PRECONDITION = re.compile(r"\b(unchanged|AtRevision|Absent|Present|LeaseHeld|Held)\(|precondition")
QUIET = re.compile(
    r"^(log|logger|logging|warnings|_log)\b|^super\(\)\.__init__"
)  # what only tells, and what can't be left out


class Mutant(msgspec.Struct, frozen=True):
    """``was`` in ``file`` from ``start`` to ``end`` (of the text's UTF-8) becomes ``now``; ``id`` stays while the function does."""

    id: str
    file: str
    line: int
    fault: str
    was: str
    now: str
    start: int
    end: int

    def apply(self, text: str) -> str:
        data = text.encode()
        return (data[: self.start] + self.now.encode() + data[self.end :]).decode()

    def describe(self) -> str:
        was, now = (" ".join(part.split())[:70] for part in (self.was, self.now))
        return f"{self.file}:{self.line}: {self.fault}: {was} → {now}"


def find_mutants(file: str, text: str) -> list[Mutant]:
    """Every fault that can be made in the functions of this module."""
    data = text.encode()
    begins = [0]
    for line in data.splitlines(keepends=True):
        begins.append(begins[-1] + len(line))
    found: list[Mutant] = []
    for name, function in _functions(ast.parse(text)):
        body = hashlib.sha256(ast.unparse(function).encode()).hexdigest()
        for count, (node, fault, now) in enumerate(_faults(function)):
            start = begins[node.lineno - 1] + node.col_offset
            end = begins[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            was = data[start:end].decode()
            if fault == "a precondition dropped":  # with the comma after it
                end += len(re.match(rb"\s*,?\s*", data[end:])[0])  # type: ignore[index]
            id_ = hashlib.sha256(f"{file} {name} {body} {count}".encode()).hexdigest()[:16]
            found.append(Mutant(id_, file, node.lineno, fault, was, now, start, end))
    return found


def _functions(tree: ast.AST, path: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path}.{node.name}", node  # with those inside of it
        elif isinstance(node, (ast.ClassDef, ast.If)):
            yield from _functions(node, f"{path}.{getattr(node, 'name', '')}")


def _faults(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    """The node that changes, what was done to it, and its new text."""
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
                yield node, "a comparison flipped", f"({left} {FLIPPED[type(node.ops[0])]} {right})"
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                yield node, "a not removed", f"({ast.unparse(node.operand)})"
            elif isinstance(node, ast.BoolOp):
                word = " or " if isinstance(node.op, ast.And) else " and "
                yield node, "and for or", f"({word.join(f'({ast.unparse(one)})' for one in node.values)})"
                for at in range(len(node.values)):
                    rest = [ast.unparse(one) for place, one in enumerate(node.values) if place != at]
                    kept = " and " if isinstance(node.op, ast.And) else " or "
                    yield node, "a condition dropped", f"({kept.join(f'({one})' for one in rest)})"
            elif isinstance(node, ast.Constant) and type(node.value) is int:
                yield node, "off by one", str(node.value + 1)
            elif isinstance(node, (ast.List, ast.Tuple)):
                for element in node.elts:
                    if len(node.elts) > (0 if isinstance(node, ast.List) else 2) and PRECONDITION.search(
                        ast.unparse(element)
                    ):
                        yield element, "a precondition dropped", ""
            elif isinstance(node, ast.Return) and node.value is not None and _is_bool(function):
                yield node, "an answer turned round", f"return not ({ast.unparse(node.value)})"
            elif isinstance(node, ast.If):
                yield node.test, "a branch turned round", f"(not ({ast.unparse(node.test)}))"
            elif isinstance(node, (ast.Continue, ast.Break, ast.AugAssign, ast.Delete)):
                yield node, "a statement dropped", "pass"
            elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
                if not QUIET.search(ast.unparse(node.value).removeprefix("await ")):
                    yield node, "a statement dropped", "pass"


def _is_bool(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return function.returns is not None and ast.unparse(function.returns) == "bool"
