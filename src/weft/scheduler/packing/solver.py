"""Solves the same problems by OR-tools' CP-SAT, where the extra ``solver`` is installed.

It can prove what search can't: that there is no answer, or none with fewer bins.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from weft.contracts.policy import Flags, Whole
from weft.scheduler.packing.local_search import Problem

MODEL = "ortools.sat.python.cp_model"
MOST_CELLS = 200_000  # items × bins; a larger model takes longer to build than any decision may


class SolverAnswer(msgspec.Struct, frozen=True):
    bins: Whole | None  # of each item; None: no answer was found
    proven: bool  # there is no answer, or none with fewer bins


def is_installed() -> bool:
    return importlib.util.find_spec("ortools") is not None


def can_solve(problem: Problem) -> bool:
    """Whether there is a solver, and the problem is not too large for it."""
    return is_installed() and int(problem.allowed.sum()) <= MOST_CELLS


def find_any(problem: Problem, apart: Sequence[Sequence[int]], seconds: float) -> SolverAnswer:
    """A bin for each item such that none overflows and no two items of a set in ``apart`` share one."""
    cp, model, cells = _write_model(problem)
    for items in apart:
        for bin_ in range(len(problem.free)):
            both = [cells[item, bin_] for item in items if (item, bin_) in cells]
            if len(both) > 1:
                model.add_at_most_one(both)
    return _solve(cp, model, cells, seconds)


def find_fewest(problem: Problem, used: Flags, hint: Whole | None, seconds: float) -> SolverAnswer:
    """Find the fewest bins; those in ``used`` cost nothing. Begins at ``hint``, an answer that is known."""
    cp, model, cells = _write_model(problem)
    begun = {int(b): model.new_bool_var("") for b in np.flatnonzero(~used)}
    for (_, bin_), cell in cells.items():
        if bin_ in begun:
            model.add_implication(cell, begun[bin_])
    model.minimize(sum(begun.values()))
    for one, next_ in zip(list(begun)[:-1], list(begun)[1:], strict=True):
        if (problem.free[one] == problem.free[next_]).all() and (
            problem.allowed[:, one] == problem.allowed[:, next_]
        ).all():
            model.add_implication(begun[next_], begun[one])  # of equal ones the first come first
    if hint is not None:
        for (item, bin_), cell in cells.items():
            model.add_hint(cell, bool(hint[item] == bin_))
        for bin_, flag in begun.items():
            model.add_hint(flag, bool((hint == bin_).any()))
    return _solve(cp, model, cells, seconds)


def _write_model(problem: Problem) -> tuple[Any, Any, dict[tuple[int, int], Any]]:
    cp = importlib.import_module(MODEL)
    model = cp.CpModel()
    cells = {
        (item, int(bin_)): model.new_bool_var("")
        for item in range(len(problem.wanted))
        for bin_ in np.flatnonzero(problem.allowed[item])
    }
    by_item: dict[int, list[Any]] = {item: [] for item in range(len(problem.wanted))}
    by_bin: dict[int, list[tuple[int, Any]]] = {}
    for (item, bin_), cell in cells.items():
        by_item[item].append(cell)
        by_bin.setdefault(bin_, []).append((item, cell))
    for choices in by_item.values():
        model.add_exactly_one(choices)
    for bin_, inside in by_bin.items():
        for resource in range(problem.wanted.shape[1]):
            terms = [int(problem.wanted[item, resource]) * cell for item, cell in inside]
            model.add(sum(terms) <= int(problem.free[bin_, resource]))
    return cp, model, cells


def _solve(cp: Any, model: Any, cells: dict[tuple[int, int], Any], seconds: float) -> SolverAnswer:
    solver = cp.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status == cp.INFEASIBLE:
        return SolverAnswer(None, True)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return SolverAnswer(None, False)
    placed = [(item, bin_) for (item, bin_), cell in cells.items() if solver.boolean_value(cell)]
    return SolverAnswer(np.asarray([bin_ for _, bin_ in sorted(placed)], dtype=np.int64), status == cp.OPTIMAL)
