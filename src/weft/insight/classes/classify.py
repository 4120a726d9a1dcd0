"""The class of a workload, with a probability: boosted trees (Friedman 2001) over what ``measures`` says of its series.

The trees are arrays in ``trees.npz``, learnt on drawn weeks by benchmarks/insight/learn_classes.py; nothing is learnt here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import msgspec
import numpy as np

from weft.contracts.history import Floats
from weft.insight.classes.measures import measure
from weft.insight.cycles import Cycle

CLASSES = ("idle", "steady", "cyclic", "bursty", "batch", "growing", "irregular")
UNKNOWN = "unknown"
LEAST_PROBABILITY = 0.6  # of a class that is said
STEP_SECONDS = 300.0  # of the series that the trees were learnt on
DAY_SECONDS = 86400.0
LEAST_KNOWN = 0.5  # of the samples, that are no gaps


class Signature(msgspec.Struct, frozen=True, rename={"class_": "class"}):
    """``class_``: one of CLASSES, or UNKNOWN. ``probability``: of the class; of UNKNOWN, of the likeliest
    one, and 0 if nothing was weighed."""

    class_: str
    probability: float


class Trees(msgspec.Struct, frozen=True):
    """All trees, node after node. A node with ``measure`` -1 is a leaf. Tree t begins at ``roots[t]`` and is about class t modulo
    the number of classes."""

    measure: np.ndarray
    threshold: np.ndarray  # not more than it: left
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray  # of a leaf, in log odds
    roots: np.ndarray
    start: np.ndarray  # by class, before any tree


def classify(
    values: Floats, cycles: Sequence[Cycle], step_seconds: float = STEP_SECONDS, full: float = 100.0
) -> Signature:
    """``values``: evenly spaced, NaN in gaps, the oldest first; ``full``: what the workload may use, in the same
    unit, 0 if nothing says how much: its greatest value then counts as full. ``cycles``: what ``find_cycles`` found in the values.
    Less than a day of them, or mostly gaps: unknown."""
    x = _prepare(values, step_seconds, full)
    if x is None:
        return Signature(UNKNOWN, 0.0)
    probabilities = weigh(measure(x, cycles))
    best = int(np.argmax(probabilities))
    probability = float(probabilities[best])
    return Signature(CLASSES[best] if probability >= LEAST_PROBABILITY else UNKNOWN, probability)


def weigh(measures: Floats) -> Floats:
    """The probability of each class, in the order of CLASSES."""
    trees = load()
    at = trees.roots
    while True:
        asked = trees.measure[at]
        is_inner = asked >= 0
        if not is_inner.any():
            break
        goes_left = measures[asked] <= trees.threshold[at]
        at = np.where(is_inner, np.where(goes_left, trees.left[at], trees.right[at]), at)
    odds = trees.start + trees.value[at].reshape(-1, len(CLASSES)).sum(axis=0)
    weights = np.exp(odds - odds.max())
    return np.asarray(weights / weights.sum())


@cache
def load() -> Trees:
    with (files("weft.insight.classes") / "trees.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Trees(**{name: arrays[name] for name in Trees.__struct_fields__})


def _prepare(values: Floats, step_seconds: float, full: float) -> Floats | None:
    """Prepare values in per cent, a sample every STEP_SECONDS, gaps filled; None: too little is known."""
    known = np.flatnonzero(~np.isnan(values))
    span = int(known[-1] - known[0]) + 1 if len(known) else 0
    if span * step_seconds < DAY_SECONDS or len(known) < LEAST_KNOWN * span:
        return None
    x = np.interp(np.arange(known[0], known[-1] + 1), known, values[known])
    samples = max(1, round(len(x) * step_seconds / STEP_SECONDS))
    if samples < len(x):  # means, as a longer step would have measured
        edges = np.linspace(0, len(x), samples + 1).round().astype(int)[:-1]
        x = np.add.reduceat(x, edges) / np.diff(np.append(edges, len(x)))
    elif samples > len(x):
        x = np.interp(np.linspace(0, len(x) - 1, samples), np.arange(len(x)), x)
    whole = full if full > 0 else float(np.abs(x).max())
    return np.asarray(100 * x / whole) if whole > 0 else x
