"""Choose the guests to migrate, and their order, so that the score falls most. Pure; docs/reference/simulate.md has both scores."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from weft.scheduler.rebalance import exact, lazy
from weft.scheduler.rebalance.model import Budget, MigrationStep, Problem, find_score

MOST_TYPES = 32  # of guests, that are compared exactly


class Rebalancing(msgspec.Struct, frozen=True):
    score_before: float
    score_after: float
    steps: list[MigrationStep]


def rebalance(problem: Problem, budget: Budget, has_time: Callable[[], bool]) -> Rebalancing:
    """``has_time`` is asked while steps that were found are exchanged for better ones."""
    before = find_score(problem, problem.at)
    if not problem.mobile.any() or not problem.target.any() or budget.steps < 1:
        return Rebalancing(before, before, [])
    if problem.round_trips is None and _count_types(problem) <= MOST_TYPES:
        return conclude(problem, exact.find_steps(problem, budget, has_time))
    return conclude(problem, lazy.find_steps(problem, budget))


def conclude(problem: Problem, steps: list[MigrationStep]) -> Rebalancing:
    """The steps with both scores, computed from the beginning."""
    at = problem.at.copy()
    for step in steps:
        at[step.guest] = step.target
    return Rebalancing(find_score(problem, problem.at), find_score(problem, at), steps)


def _count_types(problem: Problem) -> int:
    keys = np.column_stack([problem.load, problem.need, problem.price, problem.size])
    return len(np.unique(keys[problem.mobile], axis=0))
