"""Weeks of drawn series in which nothing happens, or only steps: how often a detector raises an alarm."""

from __future__ import annotations

import numpy as np

from benchmarks.insight.drawn import WEEK
from weft.contracts.history import Floats
from weft.insight.anomalies import Detector

AFTER_STEP = 24  # samples in which the alarm of a step is a true one


def draw_kinds(random: np.random.Generator, weeks: int) -> dict[str, tuple[Floats, list[int]]]:
    """A series of each kind, and the samples at which it steps."""
    samples = weeks * WEEK
    noise, related, walk, tiny, wobble = random.standard_normal((5, samples))
    for at in range(1, samples):
        related[at] += 0.95 * related[at - 1]
    steps = np.zeros(samples)
    places = sorted(int(at) for at in random.choice(samples, 2 * weeks, replace=False))
    for at in places:
        steps[at:] += 5 * random.standard_normal()
    return {
        "walk": (100 + np.cumsum(walk), []),
        "white noise": (30 + noise, []),
        "AR(1) 0.95": (related, []),
        "daily sine": (50 + 20 * np.sin(2 * np.pi * np.arange(samples) / 288) + 2 * wobble, []),
        "flat, tiny noise": (100 + 0.001 * tiny, []),
        "steps": (steps, places),
    }


def count_false(values: Floats, places: list[int], threshold: float) -> int:
    """Alarms that aren't of a step, or not the first of it."""
    detector = Detector(threshold)
    alarms = [at for at, value in enumerate(values) if detector.put(float(value)).is_alarm]
    return len(alarms) - sum(any(0 <= at - place < AFTER_STEP for at in alarms) for place in places)


def measure_rates(threshold: float, draws: int, weeks: int, seed: int) -> dict[str, float]:
    """False alarms a week, by kind."""
    found: dict[str, int] = {}
    for draw in range(draws):
        for kind, (values, places) in draw_kinds(np.random.default_rng(seed + draw), weeks).items():
            found[kind] = found.get(kind, 0) + count_false(values, places, threshold)
    return {kind: number / draws / weeks for kind, number in found.items()}
