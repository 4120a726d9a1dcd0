"""Verdicts on a new version: by how many of its requests failed, and by how fast it answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.insight.canary import (
    LOWER,
    UPPER,
    Rates,
    choose_rates,
    count_clean,
    judge,
    judge_failures,
    weigh,
)


def test_the_rates_follow_from_the_threshold_and_from_the_old_version() -> None:
    assert choose_rates(0.999) == Rates(pytest.approx(0.001), pytest.approx(0.01))
    assert choose_rates(0.99) == Rates(pytest.approx(0.01), pytest.approx(0.03))
    assert choose_rates(0.999, 1000, 20) == Rates(pytest.approx(0.02), pytest.approx(0.06))
    assert choose_rates(0.999, 1000, 0).good == pytest.approx(0.001)
    assert choose_rates(0.999, 10, 10).bad <= 0.5


def test_a_version_without_failures_passes_after_as_many_requests_as_promised() -> None:
    rates = choose_rates(0.999)
    clean = count_clean(rates)
    assert 326 <= clean <= 360
    assert judge_failures(clean - 1, 0, rates) == "wait"
    assert judge_failures(clean, 0, rates) == "good"
    assert weigh(clean, 0, rates) <= LOWER < weigh(clean - 1, 0, rates)


def test_a_few_failures_early_mean_a_rollback_and_one_burst_alone_does_not() -> None:
    rates = choose_rates(0.999)
    assert judge_failures(20, 2, rates, moments=2) == "bad"
    assert judge_failures(20, 2, rates, moments=1) == "wait"
    assert weigh(20, 2, rates) >= UPPER > math.log(10)
    assert judge_failures(20, 1, rates, moments=1) == "wait"


def test_versions_that_fail_too_often_are_told_from_good_ones_in_drawn_runs() -> None:
    draw, rates, runs = np.random.default_rng(7), choose_rates(0.999), 400
    wrong = {"good": 0, "bad": 0}
    for rate, word in ((rates.bad, "good"), (rates.good, "bad")):
        for _ in range(runs):
            failures = np.cumsum(draw.random(4000) < rate)
            weights = failures * math.log(rates.bad / rates.good) + (np.arange(1, 4001) - failures) * math.log(
                (1 - rates.bad) / (1 - rates.good)
            )
            over = np.flatnonzero((weights >= UPPER) | (weights <= LOWER))
            wrong[word] += len(over) > 0 and judge_failures(int(over[0]) + 1, int(failures[over[0]]), rates) == word
    assert wrong["good"] <= 0.08 * runs
    assert wrong["bad"] <= 0.06 * runs


def test_the_finding_says_what_was_counted() -> None:
    rates = choose_rates(0.999)
    assert judge(0, 0, rates).why == "no requests reached the new revision"
    assert judge(40, 4, rates).word == "bad"
    assert judge(40, 4, rates).why == "4 of 40 requests failed (10 %, allowed 0.1 %)"
    assert judge(100, 0, rates).word == "wait"
    assert judge(400, 0, rates).word == "good"
    old, new = (np.linspace(first, 2 * first, 60).reshape(3, 20) for first in (0.01, 0.1))
    slow = judge(400, 0, rates, old_seconds=[old], new_seconds=[new])
    assert slow.word == "bad"
    assert slow.why == "it answers in 150 ms, the old revision in 15 ms (medians)"
