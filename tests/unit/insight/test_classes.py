"""Classes: what is beyond doubt gets its word, what nobody can know gets none, and the trees are those that were learnt."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from benchmarks.insight.labelled import BREADTH, FINGERPRINT_SERIES, LEARNT, SEED, digest, draw_measures, fingerprint

from weft.contracts.history import Floats
from weft.insight.classes import CLASSES, UNKNOWN, Signature, classify
from weft.insight.classes.classify import Trees, load, weigh
from weft.insight.cycles import find_cycles

WEEK, DAY = 2016, 288


def judge(values: Floats, step_seconds: float = 300.0, full: float = 100.0) -> Signature:
    return classify(values, find_cycles(values), step_seconds, full)


def jobs(random: np.random.Generator) -> Floats:
    values, at = np.zeros(WEEK), 100
    while at < WEEK:
        span = int(random.integers(60, 260))
        values[at : at + span] = 100
        at += span + int(random.integers(60, 260))
    return values + 0.2 * random.random(WEEK)


def spikes(random: np.random.Generator) -> Floats:
    values = 1 + 0.1 * random.standard_normal(WEEK)
    for at in random.integers(0, WEEK, 45):
        values[at : at + 2] += 60
    return values


def wander(random: np.random.Generator) -> Floats:
    walk = np.cumsum(random.standard_normal(WEEK)) / 6
    return 50 + 20 * np.abs((walk - 2) % 8 - 4) - 40 + 3 * random.standard_normal(WEEK)


def test_the_trees_are_those_that_were_learnt_from_what_is_drawn_and_measured_today() -> None:
    known = json.loads(LEARNT.read_text())
    assert digest(load()) == known["arrays"], "run benchmarks/insight/learn_classes.py"
    measures, _ = draw_measures(SEED, FINGERPRINT_SERIES // len(CLASSES), BREADTH)
    assert fingerprint(measures) == pytest.approx(known["measures"], rel=1e-3, abs=1e-3), "learn the trees again"


def test_each_tree_ends_in_leaves_and_no_node_leads_back() -> None:
    trees: Trees = load()
    inner = np.flatnonzero(trees.measure >= 0)
    assert (trees.left[inner] > inner).all() and (trees.right[inner] > inner).all()
    assert max(trees.left.max(), trees.right.max()) < len(trees.measure)
    assert len(trees.roots) % len(CLASSES) == 0
    assert weigh(np.zeros(25)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("idle", 0.4 + 0.1 * np.random.default_rng(1).standard_normal(WEEK)),
        ("idle", np.zeros(WEEK)),
        ("steady", 40 + np.random.default_rng(2).standard_normal(WEEK)),
        ("steady", np.full(WEEK, 70.0)),
        (
            "cyclic",
            30 + 15 * np.sin(np.arange(WEEK) * 2 * np.pi / DAY) + np.random.default_rng(3).standard_normal(WEEK),
        ),
        ("bursty", spikes(np.random.default_rng(4))),
        ("batch", jobs(np.random.default_rng(5))),
        ("growing", np.linspace(10, 80, WEEK) + np.random.default_rng(6).standard_normal(WEEK)),
        ("irregular", wander(np.random.default_rng(7))),
    ],
)
def test_what_is_beyond_doubt_gets_its_word(word: str, values: Floats) -> None:
    found = judge(values)
    assert (found.class_, found.probability > 0.8) == (word, True)


def test_nobody_knows_what_is_younger_than_a_day_or_mostly_gaps() -> None:
    steady = 40 + np.random.default_rng(8).standard_normal(WEEK)
    assert judge(steady[: DAY - 1]) == Signature(UNKNOWN, 0.0)
    assert judge(steady[:DAY]).class_ != UNKNOWN
    young = steady.copy()
    young[: -2 * DAY] = math.nan  # what was before it is no gap
    assert judge(young).class_ == "steady"
    steady[np.random.default_rng(9).random(WEEK) < 0.6] = math.nan
    assert judge(steady) == Signature(UNKNOWN, 0.0)
    assert judge(np.array([])) == judge(np.full(WEEK, math.nan)) == Signature(UNKNOWN, 0.0)


def test_gaps_units_and_steps_change_no_class() -> None:
    values = jobs(np.random.default_rng(10))
    values[300:400] = math.nan
    values[:50] = math.nan
    assert judge(values).class_ == judge(values * 0.04, full=4.0).class_ == "batch"
    assert judge(np.repeat(values, 5), step_seconds=60.0).class_ == "batch"
    assert judge(values[::3], step_seconds=900.0).class_ == "batch"
    assert judge(np.zeros(WEEK), full=0.0).class_ == "idle"
    assert judge(values, full=0.0).class_ == "batch"


@pytest.mark.parametrize("value", [1e300, -1e300, 5e-324])
def test_absurd_values_have_a_finite_answer(value: float) -> None:
    found = classify(np.append(np.ones(WEEK), value), [])
    assert 0 < found.probability <= 1
