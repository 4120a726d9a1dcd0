"""Learn from what followed the same situations in a series' own past: a median of the steps from there.

A situation is one of 24 quantiles of the value, by one of a few contexts that say what the value alone doesn't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.contracts.history import Floats

QUANTILES = 24
CONTEXTS = 4
STILL = 12  # steps of 0 that each situation is given: few observations change nothing
LEAST = 3  # observations of a situation
Indexes = NDArray[np.int64]


class Steps:
    """The median step over ``horizon`` samples from each situation of many series; ``medians`` by context, series and situation."""

    def __init__(self, values: Floats, contexts: Sequence[NDArray[Any]], horizon: int) -> None:
        """``values``, and of each kind of context one for each of them (0 to CONTEXTS - 1): shape (count, n) each."""
        self.edges = np.quantile(values, np.linspace(0, 1, QUANTILES + 1)[1:-1], axis=1).T
        starts = values.shape[1] - horizon
        self.medians = np.empty((len(contexts), len(values), QUANTILES * CONTEXTS))
        for at, (row, edges) in enumerate(zip(values, self.edges, strict=True)):
            quantile = np.searchsorted(edges, row[:starts], side="right") * CONTEXTS
            situations = np.array([quantile + context[at, :starts] for context in contexts])
            self.medians[:, at] = _find_medians(situations, row[horizon:] - row[:starts])

    def find(self, values: Floats, contexts: Sequence[Indexes]) -> list[Floats]:
        """Median step of each series from its value, for each kind of context: shape (count,) each."""
        quantile = (self.edges <= values[:, None]).sum(axis=1) * CONTEXTS
        every = np.arange(len(values))
        return [medians[every, quantile + of] for medians, of in zip(self.medians, contexts, strict=True)]


def _find_medians(situations: Indexes, steps: Floats) -> Floats:
    """The median of each situation's steps and STILL zeros, 0 for one of less than LEAST; a row for each of ``situations``."""
    kinds, many = len(situations), QUANTILES * CONTEXTS
    order = np.argsort(steps)
    ordered = steps[order]
    groups = (situations[:, order] + many * np.arange(kinds)[:, None]).ravel()
    steps_of = np.tile(ordered, kinds)
    of_groups = steps_of[np.argsort(groups.astype(np.int16), kind="stable")]  # small numbers are sorted by their digits
    count = np.bincount(groups, minlength=kinds * many)
    first = np.cumsum(count) - count
    below = np.bincount(groups[steps_of < 0], minlength=kinds * many)

    def pick(rank: Indexes) -> Floats:
        """The value of that rank among a group's steps and the zeros, which stand between those below 0 and the others."""
        at = np.where(rank < below, rank, np.maximum(rank - STILL, below))
        value = of_groups[np.clip(first + at, 0, len(of_groups) - 1)]
        return np.where((rank >= below) & (rank < below + STILL), 0.0, value)

    total = count + STILL
    median = (pick((total - 1) // 2) + pick(total // 2)) / 2
    return np.where(count >= LEAST, median, 0.0).reshape(kinds, many)
