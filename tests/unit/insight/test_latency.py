"""Whether a version answers more slowly: by windows of independent means, and by how much."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.contracts.history import Floats
from weft.insight.latency import compare_ranks, find_median, is_slower

MOMENTS = 6


def draw_instances(mean: float, instances: int, seed: int, moments: int = MOMENTS) -> list[Floats]:
    """Each measured by three nodes."""
    draw = np.random.default_rng(seed)
    return [draw.normal(mean, 0.05 * mean, (3, moments)) for _ in range(instances)]


def test_a_slower_version_is_told_apart_and_an_equal_one_is_not() -> None:
    old = draw_instances(0.1, 5, 1)
    assert is_slower(old, draw_instances(0.2, 1, 2))
    assert not is_slower(old, draw_instances(0.1, 1, 3))
    assert not is_slower(draw_instances(0.1, 1, 4), draw_instances(0.14, 1, 5)), "significant, and too little"
    assert not is_slower([np.full((3, MOMENTS), 0.1)], [np.full((3, MOMENTS), 0.1)])


def test_too_few_windows_or_moments_say_nothing() -> None:
    old, new = draw_instances(0.1, 5, 1), draw_instances(0.5, 1, 2)
    assert is_slower(old, new)
    assert not is_slower(old, [new[0][:1]]), "six windows"
    assert not is_slower([one[:, :2] for one in old], [one[:, :2] for one in draw_instances(0.5, 3, 2)]), "two moments"
    assert not is_slower([], new) and not is_slower(old, [])
    nobody = [np.full((3, MOMENTS), math.nan)]
    assert not is_slower(nobody, new) and not is_slower(old, nobody)


def test_only_moments_count_at_which_both_versions_answered() -> None:
    """The old one was fast before the new one was there."""
    old = [np.hstack([np.full((3, 20), 0.02), one]) for one in draw_instances(0.1, 4, 1)]
    new = [np.hstack([np.full((3, 20), math.nan), one]) for one in draw_instances(0.1, 1, 2)]
    assert not is_slower(old, new)


def test_the_rank_test_is_as_sure_as_tables_say() -> None:
    one, other = np.arange(8.0), np.arange(8.0) + 100.0
    assert compare_ranks(one, other) == pytest.approx(0.00047, abs=0.00005)
    assert compare_ranks(other, one) > 0.999
    assert compare_ranks(np.ones(9), np.ones(9)) == 1.0
    assert find_median([one.reshape(2, 4)]) == 3.5 and math.isnan(find_median([]))
