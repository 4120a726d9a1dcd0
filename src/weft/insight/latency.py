"""Whether a new version of a service answers more slowly than the old one: means of windows in, yes or no out. Pure.

By the rank sum test of Mann and Whitney (1947). What it is given must be independent, or it is sure of what is chance: each value
is the mean of a window that no other value shares. And as instances differ though their versions are equal (a busy node, a
cold cache), to be significant isn't enough: the new ones must be slower than nine of ten old instances, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weft.contracts.history import Floats

LEAST_WINDOWS = 8  # of each version
LEAST_MOMENTS = 3  # windows one after another: a busy machine is slow for some seconds
SLOWER = 1.5  # times as slow, in the median
LEAST_DIFFERENCE_SECONDS = 0.005  # what nobody notices is no reason to go back
CHANCE = 0.001  # of equal versions at one look; it is looked at every few seconds, for minutes
_HIGH = 0.9  # of the old instances are at most so slow


def is_slower(old: Sequence[Floats], new: Sequence[Floats]) -> bool:
    """``old``, ``new``: the mean seconds of each instance's answers, shape (places that measure it, windows), NaN where there were
    none. The windows are the same in all; only those count in which both versions answered."""
    if not old or not new:
        return False
    both = _answered(old) & _answered(new)
    if both.sum() < LEAST_MOMENTS:
        return False
    olds = [kept for one in old if len(kept := _known(one[:, both]))]
    slow, fast = _known(np.vstack(new)[:, both]), np.concatenate(olds)
    if min(len(slow), len(fast)) < LEAST_WINDOWS:
        return False
    usual, median = float(np.median(fast)), float(np.median(slow))
    among = float(np.quantile([np.median(one) for one in olds], _HIGH, method="higher"))
    if median <= max(SLOWER * usual, usual + LEAST_DIFFERENCE_SECONDS, among):
        return False
    return compare_ranks(fast, slow) < CHANCE


def compare_ranks(old: Floats, new: Floats) -> float:
    """How probable it is by chance that ``new`` ranks so high; shapes (n,) and (m,). By the normal approximation, with ties."""
    values, places, counts = np.unique(np.concatenate([old, new]), return_inverse=True, return_counts=True)
    if len(values) == 1:
        return 1.0
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2.0)[places]  # ties share the mean of their ranks
    n, m = len(old), len(new)
    above = float(ranks[n:].sum()) - m * (m + 1) / 2.0
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    spread = math.sqrt(n * m / 12.0 * (n + m + 1 - ties))
    return math.erfc((above - n * m / 2.0 - 0.5) / spread / math.sqrt(2)) / 2


def find_median(instances: Sequence[Floats]) -> float:
    """Seconds; NaN without any."""
    known = _known(np.concatenate([one.ravel() for one in instances])) if instances else np.zeros(0)
    return float(np.median(known)) if len(known) else math.nan


def _answered(instances: Sequence[Floats]) -> np.ndarray:
    return np.asarray(np.isfinite(np.vstack(instances)).any(axis=0))


def _known(values: Floats) -> Floats:
    known: Floats = values[np.isfinite(values)]
    return known
