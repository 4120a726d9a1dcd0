"""How often the class of a workload is right: of drawn series, and of real weeks of which nobody can doubt it."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.insight.labelled import WEEK, draw_labelled
from benchmarks.measurement import Figure
from weft.contracts.history import Floats
from weft.insight.classes import CLASSES, classify
from weft.insight.cycles import find_cycles

SEED = 77
SERIES = 100  # of each class
BREADTH = (1.5, 2.2)  # the trees have learnt from narrower ranges: labelled.BREADTH
DRAWN_GOAL, REAL_GOAL = 0.92, 0.85
_LEAST_WEEK = 1500  # samples


def measure_drawn() -> Figure:
    random = np.random.default_rng(SEED)
    right, spent, found = 0, 0.0, 0.0
    for _ in range(SERIES):
        for label in CLASSES:
            values = draw_labelled(random, label, random.uniform(*BREADTH))
            begun = time.process_time()
            cycles = find_cycles(values)
            cycled = time.process_time()
            right += classify(values, cycles).class_ == label
            spent, found = spent + time.process_time() - cycled, found + cycled - begun
    many = SERIES * len(CLASSES)
    share = right / many
    return Figure(
        f"classes of {many} drawn series, wider ranges and other seeds than learnt: right, unknown counts as wrong",
        f"{share:.3f} ({1000 * spent / many:.1f} ms of CPU a series, and {1000 * found / many:.0f} ms for its cycles)",
        goal=f"≥ {DRAWN_GOAL}",
        kept=share >= DRAWN_GOAL,
    )


def measure_real(months: list[Floats]) -> Figure:
    right = {"idle": 0, "batch": 0}
    all_ = dict(right)
    for series in months[0]:
        for begin in range(0, len(series), WEEK):
            values = series[begin : begin + WEEK]
            values = values[~np.isnan(values)]
            label = find_label(values) if len(values) >= _LEAST_WEEK else None
            if label is not None:
                all_[label] += 1
                right[label] += classify(values, find_cycles(values)).class_ == label
    share = sum(right.values()) / max(1, sum(all_.values()))
    each = ", ".join(f"{label} {right[label]} of {all_[label]}" for label in right)
    return Figure(
        "classes of Bitbrains' weeks that are beyond doubt",
        f"{share:.3f} ({each})",
        goal=f"≥ {REAL_GOAL}",
        kept=share >= REAL_GOAL,
    )


def find_label(values: Floats) -> str | None:
    """By hand: idle is a median under 2 % and a 95th percentile under 3 %; batch is long on and long off with little between."""
    low, median, p95, top = np.quantile(values, (0, 0.5, 0.95, 1))
    if median < 2 and p95 < 3:
        return "idle"
    middle = (low + top) / 2
    is_on = values > middle
    between = float((np.abs(values - middle) < (top - low) / 4).mean())
    runs = np.diff(np.flatnonzero(np.diff(is_on)))
    if top - low > 50 and 0.1 < is_on.mean() < 0.9 and between < 0.2 and len(runs) and np.median(runs) >= 6:
        return "batch"
    return None
