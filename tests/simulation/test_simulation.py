"""The whole control plane under drawn misfortunes: it keeps its promises, and replays exactly."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.long import ALL_EXAMPLES
from tests.simulation import fabric, virtual_loop
from tests.simulation.fate import BEHIND, CHANCES, GIVEN_UP, LEASES, MISFORTUNES, MOVING, TENANTS
from tests.simulation.simulation import Store, Trace, run_simulation

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 150 if ALL_EXAMPLES else 100


def long(*histories: tuple[Any, ...]) -> list[Any]:
    return [pytest.param(*history, marks=pytest.mark.long) for history in histories]


@functools.cache
def run_once(seed: int, faults: int) -> Trace:
    """For who only looks at the run: the same seed gives the same run, which is shown below."""
    return run_simulation(seed, faults)


@pytest.mark.parametrize(
    ("store", "seed"),
    [("sqlite", 4), *long(("memory", 1), ("memory", 2), ("memory", 3), ("sqlite", 5), ("sqlite", 26))],
)
def test_whatever_happens_every_spec_is_met_and_no_guest_is_lost_or_doubled(store: Store, seed: int) -> None:
    trace = run_once(seed, FAULTS) if store == "memory" else run_simulation(seed, FAULTS, store)
    print(trace)
    assert trace.fault_count >= FAULTS, trace
    assert not trace.violations, f'replay it: run_simulation({seed}, {FAULTS}, "{store}"): {trace.violations}'


@pytest.mark.parametrize(("store", "seed"), [("sqlite", 11), *long(("memory", 10), ("memory", 12))])
def test_a_store_that_is_restored_again_and_again_doubles_nothing_either(store: Store, seed: int) -> None:
    trace = run_simulation(seed, FAULTS, store, {**MISFORTUNES, "older store restored": 45})
    assert trace.faults["older store restored"] >= 5, trace
    assert not trace.violations, trace


@pytest.mark.parametrize(
    ("store", "weather", "seeds"),
    [
        pytest.param("memory", MISFORTUNES, (1, 2), marks=pytest.mark.long),
        ("sqlite", MISFORTUNES, (6,)),
        pytest.param("memory", BEHIND, (1,), marks=pytest.mark.long),
        pytest.param("sqlite", GIVEN_UP, (2,), marks=pytest.mark.long),
    ],
    ids=["all", "all on a file", "older stores", "nodes given up"],
)
def test_whatever_happens_while_guests_move_each_runs_once_with_all_it_had_and_nothing_is_left_over(
    store: Store, weather: Mapping[str, int], seeds: tuple[int, ...]
) -> None:
    traces = [run_simulation(seed, FAULTS, store, weather, moves=True) for seed in seeds]
    for trace in traces:
        assert not trace.violations, f'run_simulation({trace.seed}, ..., "{store}", ..., moves=True): {trace}'
    assert sum(trace.migrations.get("Succeeded", 0) for trace in traces) > 0, traces


@pytest.mark.long
def test_a_history_that_broke_a_promise_once_keeps_them_all() -> None:
    trace = run_simulation(770027, 300, "sqlite", moves=True)
    assert not trace.violations, trace


@pytest.mark.parametrize(("store", "seed"), [("sqlite", 2), *long(("memory", 1), ("memory", 3))])
def test_whatever_happens_no_try_of_a_job_runs_twice_and_all_are_counted_as_they_ended(store: Store, seed: int) -> None:
    trace = run_simulation(seed, 60, store, MOVING, jobs=True)
    assert not trace.violations, f'run_simulation({seed}, 60, "{store}", MOVING, jobs=True): {trace}'
    assert trace.wishes["run job"] > 0, trace


@pytest.mark.parametrize(
    ("store", "seed"),
    [("memory", 2), *long(("sqlite", 4), *(("memory", seed) for seed in range(5, 15)))],
)
def test_whatever_happens_a_conversion_leaves_one_of_both_which_has_all_and_never_do_both_run(
    store: Store, seed: int
) -> None:
    trace = run_simulation(seed, 60, store, MOVING, converts=True)
    assert not trace.violations, f'run_simulation({seed}, 60, "{store}", MOVING, converts=True): {trace}'
    assert trace.migrations.get("HandingOver", 0) > 0, trace


@pytest.mark.parametrize(
    ("store", "seed", "faults"),
    [
        ("memory", 1, 40),
        *long(("memory", 1, FAULTS), *(("sqlite", seed, FAULTS) for seed in range(2, 12))),
    ],
)
def test_whatever_happens_a_lease_begins_once_and_never_before_its_start(store: Store, seed: int, faults: int) -> None:
    trace = run_simulation(seed, faults, store, LEASES, leases=True)
    assert not trace.violations, f'run_simulation({seed}, {faults}, "{store}", LEASES, leases=True): {trace}'
    assert trace.wishes["re-planned"] > 0 and trace.wishes["lease Done"] > 0, trace


@pytest.mark.parametrize(("store", "seed"), [("memory", 1), *long(*(("sqlite", seed) for seed in range(3, 13)))])
def test_whatever_happens_what_is_reserved_is_given_once_and_shares_limits_and_budgets_hold(
    store: Store, seed: int
) -> None:
    trace = run_simulation(seed, 60, store, TENANTS, tenants=True)
    assert not trace.violations, f'run_simulation({seed}, 60, "{store}", TENANTS, tenants=True): {trace}'
    met = ("slot re-planned", "within Done", "suspended", "share taken back", "limit changed", "create 403")
    assert all(trace.wishes.get(what) for what in met), trace.wishes


@pytest.mark.parametrize(
    ("store", "seed"), [("memory", 20), *long(*(("sqlite", seed) for seed in (*range(10, 18), 19)))]
)
def test_whatever_happens_a_snapshot_is_of_one_instant_and_none_is_lost_or_left_over(store: Store, seed: int) -> None:
    trace = run_simulation(seed, FAULTS, store, MOVING, snapshots=True)
    assert not trace.violations, f'run_simulation({seed}, {FAULTS}, "{store}", MOVING, snapshots=True): {trace}'
    assert trace.wishes["snapshot Ready"] > 0 and trace.wishes["delete snapshot"] > 0, trace.wishes


@pytest.mark.parametrize(
    ("store", "seeds"),
    [
        ("memory", (17,)),
        *(pytest.param("memory", (seed,), marks=pytest.mark.long) for seed in range(1, 41)),
        *(pytest.param("sqlite", (seed,), marks=pytest.mark.long) for seed in range(41, 47)),
    ],
)
def test_a_twin_begins_with_its_snapshot_and_a_restore_keeps_what_stood_there_though_stores_and_nodes_are_lost(
    store: Store, seeds: tuple[int, ...]
) -> None:
    for seed in seeds:
        trace = run_simulation(seed, 100, store, MISFORTUNES, snapshots=True)
        assert not trace.violations, f'run_simulation({seed}, 100, "{store}", snapshots=True): {trace}'


@pytest.mark.long  # that it replays in another process says more of memory
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_the_same_seed_gives_the_same_run(store: Store) -> None:
    first = run_once(6, 60) if store == "memory" else run_simulation(6, 60, store)
    assert run_simulation(6, 60, store) == first


@pytest.mark.long
def test_every_kind_of_fault_is_met() -> None:
    missing, seeds = {*CHANCES, *MISFORTUNES}, iter(range(2, 10))
    while missing:
        missing -= run_once(next(seeds), FAULTS).faults.keys()


@pytest.mark.long
def test_another_seed_gives_another_run() -> None:
    assert run_once(6, 60).digest != run_once(7, 60).digest


def test_a_run_replays_in_another_process() -> None:
    here = run_once(6, 60).digest
    words = "from tests.simulation.simulation import run_simulation; print(run_simulation(6, 60).digest)"
    words = f"import logging; logging.disable(logging.CRITICAL); {words}"  # as here: an agent keeps what is logged
    there = subprocess.run(
        [sys.executable, "-c", words],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert there.stdout.strip() == here


@pytest.mark.parametrize(("seconds", "steps", "spent"), [(60.0, 10**9, "60 s"), (1e6, 8_000, "8000 steps")])
def test_a_run_that_does_not_settle_ends_and_says_what_it_waits_for(
    seconds: float, steps: int, spent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fabric, "MOST_SECONDS", seconds)
    monkeypatch.setattr(fabric, "MOST_SECONDS_PER_FAULT", 0.0)
    monkeypatch.setattr(virtual_loop, "MOST_STEPS", steps)
    (violation,) = run_simulation(1, FAULTS).violations
    assert violation.startswith(f"not settled after {spent}, "), violation
    assert f"of {FAULTS} faults met: it waits for " in violation and "v0" in violation, violation
