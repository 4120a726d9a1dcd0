"""Find the series that change together: ranks, each series' own memory removed, then the mean product.

Without prewhitening (Box and Jenkins) any two random walks look related; without ranks (Spearman) one common spike does.
"""

from __future__ import annotations

import math

import numpy as np

from weft.contracts.history import Floats

MEMORY = 3  # of the autoregression that is removed
SURE = 3.3  # standard errors: one false pair in a thousand
LEAST_SAMPLES = 96


def correlate(values: Floats) -> Floats:
    """Correlate each pair of series, shape (count, count), -1 to 1; 0 where a series is constant or too short. NaN is a gap."""
    rest = np.array([_whiten(_rank(row)) for row in values])
    return np.asarray(rest @ rest.T / max(1, rest.shape[1])) if len(rest) else np.zeros((0, 0))


def correlate_between(values: Floats, others: Floats) -> Floats:
    """Correlate like ``correlate`` each of ``values`` with each of ``others``, at the same moments: shape
    (count, count of others)."""
    if not len(values) or not len(others):
        return np.zeros((len(values), len(others)))
    of_others = np.array([_whiten(_rank(row)) for row in others])
    rest = np.array([_whiten(_rank(row)) for row in values])
    return np.asarray(rest @ of_others.T / max(1, rest.shape[1]))


def least_related(samples: int, pairs: int = 1) -> float:
    """Least absolute correlation from which a pair of so many samples counts as related: of so many ``pairs`` that are unrelated,
    one in a thousand times any does (the tail of a normal variable is below exp(-z²/2))."""
    sure = SURE if pairs <= 1 else math.sqrt(2 * math.log(1000 * pairs))
    return sure / math.sqrt(max(1, samples))


def _rank(row: Floats) -> Floats:
    """Ranks from 0 to 1, equal values alike; a gap stands in the middle."""
    known = ~np.isnan(row)
    ranks = np.full(len(row), 0.5)
    if known.sum() >= 2:
        different, which = np.unique(row[known], return_inverse=True)
        counts = np.bincount(which)
        middle = np.cumsum(counts) - (counts + 1) / 2
        ranks[known] = middle[which] / max(1, known.sum() - 1)
        del different
    return ranks


def _whiten(ranks: Floats) -> Floats:
    """Remainder that an autoregression of the series doesn't explain, with a variance of 1; zeros if nothing is left."""
    zeros = np.zeros(max(0, len(ranks) - MEMORY))
    if len(ranks) < LEAST_SAMPLES:
        return zeros
    x = ranks - ranks.mean()
    lags = np.array([x[MEMORY - lag : len(x) - lag] for lag in range(1, MEMORY + 1)])
    gram = lags @ lags.T + 1e-9 * np.eye(MEMORY)
    rest = x[MEMORY:] - np.linalg.solve(gram, lags @ x[MEMORY:]) @ lags
    spread = float(rest.std())
    return np.asarray(rest / spread) if spread > 1e-6 else zeros
