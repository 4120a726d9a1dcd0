"""Which series change together, and how steady one is."""

from __future__ import annotations

import numpy as np

from weft.insight.correlation import LEAST_SAMPLES, correlate, least_related
from weft.insight.stability import measure_stability


def test_random_walks_are_unrelated_however_alike_they_look() -> None:
    random = np.random.default_rng(1)
    related = correlate(np.cumsum(random.standard_normal((30, 600)), axis=1))
    pairs = np.abs(related[np.triu_indices(30, 1)])
    assert (pairs > least_related(600)).sum() <= 2  # of 435


def test_series_that_share_half_of_what_moves_them_are_related() -> None:
    random = np.random.default_rng(2)
    shared = random.standard_normal(600)
    values = np.cumsum([shared + random.standard_normal(600) for _ in range(6)], axis=1)
    assert correlate(values)[np.triu_indices(6, 1)].min() > least_related(600)


def test_one_common_spike_relates_nothing() -> None:
    values = np.random.default_rng(3).standard_normal((2, 600))
    values[:, 300] = 1e6
    assert abs(correlate(values)[0, 1]) < least_related(600)


def test_constant_short_and_missing_series_are_related_to_nothing() -> None:
    random = np.random.default_rng(4)
    values = np.array([np.ones(600), random.standard_normal(600), np.full(600, np.nan)])
    assert correlate(values)[0, 1] == correlate(values)[1, 2] == 0
    assert not correlate(random.standard_normal((2, LEAST_SAMPLES - 1))).any()
    assert correlate(np.zeros((0, 100))).shape == (0, 0)


def test_a_workload_whose_next_hour_is_known_is_stable() -> None:
    steady, wild = measure_stability(np.array([0.5, 20.0]), np.array([50.0, 20.0]))
    assert steady > 0.95
    assert wild < 0.3
    assert measure_stability(np.array([0.02]), np.array([2.0]), full=4.0) == measure_stability(
        np.array([0.5]), np.array([50.0])
    )
