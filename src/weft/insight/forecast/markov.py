"""Learn from what followed the same situations in a series' own past: a median of the steps from there.

A situation is one of 24 quantiles of the value, by one of a few contexts that say what the value alone doesn't."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weft.contracts.history import Floats

QUANTILES = 24
CONTEXTS = 4
STILL = 12  # steps of 0 that each situation is given: few observations change nothing
LEAST = 3  # observations of a situation
Indexes = NDArray[np.int64]


class Steps:
    """The median step over ``horizon`` samples from each situation of one series."""

    def __init__(self, values: Floats, context: Indexes, horizon: int) -> None:
        """``values`` and ``context`` (0 to CONTEXTS - 1): one for each past sample, shape (n,)."""
        self.edges = np.quantile(values, np.linspace(0, 1, QUANTILES + 1)[1:-1])
        starts = len(values) - horizon
        situation = np.searchsorted(self.edges, values[:starts], side="right") * CONTEXTS + context[:starts]
        self.medians = _find_medians(situation, values[horizon:] - values[:starts])

    def find(self, value: float, context: int) -> float:
        return float(self.medians[int(np.searchsorted(self.edges, value, side="right")) * CONTEXTS + context])


class ManySteps:
    """The same of many series; ``values`` and ``contexts`` of shape (count, n)."""

    def __init__(self, values: Floats, contexts: Indexes, horizon: int) -> None:
        each = [Steps(one, context, horizon) for one, context in zip(values, contexts, strict=True)]
        self._edges = np.array([one.edges for one in each])
        self._medians = np.array([one.medians for one in each])

    def find(self, values: Floats, contexts: Indexes) -> Floats:
        """Median step of each series from its value in its context, shapes (count,)."""
        situation = (self._edges <= values[:, None]).sum(axis=1) * CONTEXTS + contexts
        return np.asarray(np.take_along_axis(self._medians, situation[:, None], axis=1)[:, 0])


def _find_medians(groups: Indexes, steps: Floats) -> Floats:
    """The median of each group's steps and STILL zeros; 0 for a group of less than LEAST. Shape (QUANTILES * CONTEXTS,)."""
    many = QUANTILES * CONTEXTS
    order = np.lexsort((steps, groups))
    ordered, of = steps[order], groups[order]
    first, end = np.searchsorted(of, np.arange(many)), np.searchsorted(of, np.arange(many), side="right")
    count = end - first
    below = np.bincount(groups, steps < 0, many).astype(np.int64)

    def pick(rank: Indexes) -> Floats:
        """The value of that rank among a group's steps and the zeros, which stand between those below 0 and the others."""
        at = np.where(rank < below, rank, np.maximum(rank - STILL, below))
        value = ordered[np.clip(first + at, 0, len(ordered) - 1)]
        return np.where((rank >= below) & (rank < below + STILL), 0.0, value)

    total = count + STILL
    median = (pick((total - 1) // 2) + pick(total // 2)) / 2
    return np.where(count >= LEAST, median, 0.0)
