"""Cycles: found where they are, not invented where they aren't."""

from __future__ import annotations

import numpy as np
import pytest

from weft.contracts.history import Floats
from weft.insight.cycles import ACT, LEAST_SAMPLES, REPORT, Cycle, find_cycles, find_extremes, weigh_cycles

WEEK = 2016


def draw_cycle(random: np.random.Generator, period: float, shape: str) -> Floats:
    phase = (np.arange(WEEK) / period + random.random()) % 1
    wave = {
        "cosine": np.cos(2 * np.pi * phase),
        "pulse": (phase < 0.3).astype(float),
        "peak": np.exp(-(((phase - 0.5) / 0.08) ** 2)),
        "saw": phase,
    }[shape]
    return np.asarray((wave - wave.mean()) / wave.std())


def draw_without(random: np.random.Generator, kind: str) -> Floats:
    steps = random.standard_normal(WEEK)
    if kind == "walk":
        return np.cumsum(steps)
    if kind == "noise":
        return steps
    if kind == "slow":
        values = np.zeros(WEEK)
        for at in range(1, WEEK):
            values[at] = 0.95 * values[at - 1] + steps[at]
        return values
    values = 0.3 * steps
    for _ in range(20):
        begin = random.integers(0, WEEK)
        values[begin : begin + random.integers(2, 40)] += random.uniform(2, 8)
    return values


@pytest.mark.parametrize("shape", ["cosine", "pulse", "peak", "saw"])
@pytest.mark.parametrize("period", [12.0, 74.3, 288.0])
def test_a_clear_cycle_is_found_with_its_period(shape: str, period: float) -> None:
    random = np.random.default_rng(int(period))
    values = 20 + 3 * draw_cycle(random, period, shape) + random.standard_normal(WEEK)
    values[700:760] = np.nan
    surest = find_cycles(values)[0]
    assert surest.period == pytest.approx(period, rel=0.02)
    assert surest.confidence > ACT


@pytest.mark.parametrize("kind", ["walk", "noise", "slow", "bursts"])
def test_no_cycle_is_invented(kind: str) -> None:
    random = np.random.default_rng(20)
    assert sum(bool(find_cycles(draw_without(random, kind))) for _ in range(50)) == 0


def test_two_cycles_are_found_and_a_multiple_of_one_isn_t() -> None:
    random = np.random.default_rng(3)
    values = 3 * draw_cycle(random, 288, "cosine") + 3 * draw_cycle(random, 50, "cosine") + random.standard_normal(WEEK)
    periods = sorted(cycle.period for cycle in find_cycles(values))
    assert periods == pytest.approx([50, 288], rel=0.03)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(0),
        np.ones(LEAST_SAMPLES - 1),
        np.ones(WEEK),
        np.full(WEEK, np.nan),
        np.where(np.arange(WEEK) < 1500, np.nan, 1.0),
    ],
    ids=["empty", "short", "constant", "only gaps", "mostly gaps"],
)
def test_what_says_nothing_has_no_cycle(values: Floats) -> None:
    assert weigh_cycles(values) == []


def test_less_than_two_and_a_half_turns_are_no_cycle() -> None:
    values = np.cos(2 * np.pi * np.arange(WEEK) / (WEEK / 2.2))
    assert [cycle for cycle in find_cycles(values) if cycle.period > 400] == []


def test_a_value_in_two_levels_has_the_cycle_of_its_switching() -> None:
    assert find_cycles((np.arange(WEEK) % 288 < 60).astype(float))[0].period == pytest.approx(288, rel=0.01)


def test_a_peak_is_told_with_the_time_at_which_it_is_half_as_high() -> None:
    profile = np.exp(-(((np.arange(100) - 40) / 8) ** 2)) - 0.14
    peaks, troughs = find_extremes(Cycle(288.0, 0.99, tuple(profile)))
    assert len(peaks) == 1
    assert peaks[0].at == pytest.approx(40 * 2.88, abs=6)
    assert 20 * 2.88 < peaks[0].begin < 36 * 2.88
    assert 44 * 2.88 < peaks[0].end < 60 * 2.88
    assert not any(peaks[0].begin < trough.at < peaks[0].end for trough in troughs)


def test_a_flat_cycle_has_no_peaks() -> None:
    assert find_extremes(Cycle(12.0, 0.9, (0.0,) * 12)) == ([], [])


def test_most_of_the_drawn_cycles_are_found_and_almost_all_that_are_found_are_right() -> None:
    random = np.random.default_rng(41)
    right = wrong = drawn = 0
    for _ in range(40):
        period = float(np.exp(random.uniform(np.log(8), np.log(504))))
        wave = draw_cycle(random, period, str(random.choice(["cosine", "pulse", "peak"])))
        noise = draw_without(random, str(random.choice(["walk", "noise", "slow"])))
        values = noise / noise.std() + random.uniform(0.4, 3) * wave
        drawn += 1
        for cycle in find_cycles(values):
            assert cycle.confidence >= REPORT
            if abs(cycle.period / period - 1) < 0.05:
                right += 1
            else:
                wrong += 1
    assert right >= 0.6 * drawn
    assert right >= 0.95 * (right + wrong)
