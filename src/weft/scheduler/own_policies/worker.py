"""The worker of one user's own policy: a process that gets requests and answers with a value for each node.

Started by ``process.py`` as ``python -m weft.scheduler.own_policies.worker FD PARENT``; ends when the line is closed. It drops
its privileges before it reads the policy, and its output goes nowhere.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from types import CodeType
from typing import Any

import numpy as np

from weft.contracts.policy import Column, Occasion, Request
from weft.scheduler.own_policies.confine import confine
from weft.scheduler.own_policies.remote_table import AskedTable, read_request
from weft.scheduler.own_policies.wire import Ended, PolicyLine

MOST_BYTES = 1 << 30
MOST_WORDS = 300
FUNCTION = "score"

Score = Callable[[Any, Request, Occasion], Any]


def main(argv: list[str]) -> int:
    line = PolicyLine(socket.socket(fileno=int(argv[0])))
    try:
        policy = line.receive(MOST_BYTES)
        score = _load(policy, int(argv[1]), line)
        if score is not None:
            line.send(["ready", ""])
            _serve(line, score, policy["name"])
    except (Ended, MemoryError):
        return 1
    return 0


def _load(policy: dict[str, Any], parent: int, line: PolicyLine) -> Score | None:
    """The policy's function; None after it has sent why there is none."""
    _hush()
    try:
        confine(parent)
    except OSError as problem:
        line.send(["notIsolated", f"the worker can't drop its privileges: {problem}"])
        return None
    try:
        score = _read_entry(policy["entry"]) if "entry" in policy else _read_source(policy["source"], policy["name"])
    except BaseException as problem:  # a user's file may raise anything
        line.send(["raised", _describe(problem, policy["name"])])
        return None
    if not callable(score):
        line.send(["noScore", f"the policy has no function {FUNCTION}(table, request, occasion)"])
        return None
    return score  # type: ignore[no-any-return]


def _read_source(source: str, name: str) -> Any:
    code: CodeType = compile(source, name, "exec")
    module: dict[str, Any] = {"__name__": "weft_policy", "__file__": name}
    exec(code, module)  # noqa: S102 (a person's policy, in a process of its own)
    return module.get(FUNCTION)


def _read_entry(name: str) -> Any:
    found = list(entry_points(group="weft.policies", name=name))
    if not found:
        raise LookupError(f"no installed package has {name} in the group weft.policies")
    loaded = found[0].load()
    return getattr(loaded, FUNCTION, loaded)


def _serve(line: PolicyLine, score: Score, name: str) -> None:
    def ask(what: str, argument: str) -> Any:
        line.send(["need", [what, argument]])
        return line.receive(MOST_BYTES)

    table = AskedTable(ask)
    label = os.path.splitext(os.path.basename(name))[0]
    while True:
        stamp, count, request, occasion = line.receive(MOST_BYTES)
        table.begin(stamp)
        try:
            columns = score(table, read_request(request), Occasion(*occasion))
            answer = ["columns", [_pack(column, count) for column in _name(columns, label)]]
        except Ended:
            raise
        except _WrongShape as problem:
            answer = ["wrongShape", str(problem)]
        except BaseException as problem:  # a user's policy may raise anything
            answer = ["raised", _describe(problem, name)]
        line.send(answer)


class _WrongShape(Exception):
    """A policy's answer is not one value for each node."""


def _name(answer: Any, label: str) -> list[Column]:
    if isinstance(answer, list) and answer and all(isinstance(column, Column) for column in answer):
        return answer
    return [Column(label, 1.0, answer)]


def _pack(column: Column, count: int) -> tuple[str, float, bytes]:
    try:
        values = np.asarray(column.values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise _WrongShape(f"{str(column.name)[:40]}: not numbers: {str(problem)[:100]}") from None
    if values.shape != (count,):
        raise _WrongShape(
            f"{str(column.name)[:40]}: shape {values.shape}, expected ({count},): one value for each node"
        )
    return str(column.name)[:40], float(column.weight), values.tobytes()


def _describe(problem: BaseException, name: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == name]
    lines += [problem.lineno] if isinstance(problem, SyntaxError) and problem.filename == name else []
    words = str(problem.msg if isinstance(problem, SyntaxError) else problem)
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(problem).__name__}: {words[:MOST_WORDS]}{where}"


def _hush() -> None:
    """Connect standard input and outputs to nothing."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if nowhere > 2:
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
