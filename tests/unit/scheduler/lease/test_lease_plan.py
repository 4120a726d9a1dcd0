"""Leases on nodes over time: what is promised is kept, and nothing is given twice."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.lease.plan import Lease, Mode
from weft.scheduler.simulate.haizea import read_site
from weft.scheduler.simulate.lease_plan import LeaseRun, simulate

DATA = Path(os.environ.get("WEFT_DATA", Path(__file__).resolve().parents[5] / "shared" / "data")) / "haizea"
NODES = [(1.0,), (1.0,), (2.0,)]
HOUR = 3600.0


def lease(name: str, mode: Mode, duration: float, **fields: object) -> Lease:
    machines = fields.pop("machines", ((1.0,),))
    return Lease(id=name, mode=mode, duration=duration, machines=machines, **{"arrival": 0.0, **fields})  # type: ignore[arg-type]


def check(runs: list[LeaseRun], capacity: list[tuple[float, ...]]) -> None:
    """Nothing is given twice; each lease that is done ran as long as it had to, in time."""
    changes = []
    for run in runs:
        if run.state == "REJECTED":
            assert run.pieces == [] and run.lease.mode != "best-effort"
            continue
        assert run.state == "DONE"
        one = run.lease
        assert run.pieces[0].start >= max(one.arrival, one.start) - 1e-3
        assert run.pieces[-1].end <= one.deadline + 1e-3
        if one.mode == "reservation":
            assert [(piece.start, piece.end) for piece in run.pieces] == [(one.start, one.start + run.real_seconds)]
        for piece in run.pieces:
            for node, machine in zip(piece.nodes, one.machines, strict=True):
                changes += [(round(piece.start, 3), 1, node, machine[0]), (round(piece.end, 3), 0, node, -machine[0])]
    used = [0.0] * len(capacity)
    for _, _, node, amount in sorted(changes):
        used[node] += amount
        assert used[node] <= capacity[node][0] + 1e-6


@st.composite
def draw_leases(draw: st.DrawFn) -> tuple[list[Lease], dict[str, float]]:
    leases, real = [], {}
    for number in range(draw(st.integers(1, 9))):
        mode = draw(st.sampled_from(["immediate", "best-effort", "reservation", "deadline"]))
        arrival, duration = draw(st.integers(0, 40)) * 300.0, draw(st.integers(1, 24)) * 300.0
        start = arrival + draw(st.integers(0, 20)) * 300.0 if mode in ("reservation", "deadline") else 0.0
        deadline = start + duration * draw(st.sampled_from([1.0, 1.3, 2.0, 5.0])) if mode == "deadline" else math.inf
        one = Lease(
            id=str(number),
            mode=mode,
            arrival=arrival,
            machines=((1.0,),) * draw(st.integers(1, 4)),
            duration=duration,
            start=start,
            deadline=deadline,
            preemptible=draw(st.booleans()),
            suspend_seconds=draw(st.sampled_from([0.0, 32.0])),
        )
        leases.append(one)
        if draw(st.booleans()):
            real[one.id] = draw(st.integers(1, 24)) * 60.0
    return leases, real


@settings(max_examples=examples(300), deadline=None)
@given(draw_leases(), st.booleans())
def test_whatever_is_asked_for_what_is_accepted_is_kept(
    drawn: tuple[list[Lease], dict[str, float]], suspends: bool
) -> None:
    leases, real = drawn
    check(simulate(leases, NODES, real, suspends=suspends), NODES)


def test_a_best_effort_lease_is_suspended_for_a_reservation_and_goes_on_after_it() -> None:
    leases = [
        lease("work", "best-effort", HOUR, suspend_seconds=30.0, machines=((1.0,),) * 4),
        lease("class", "reservation", HOUR, arrival=600.0, start=1800.0, machines=((1.0,),) * 4, preemptible=False),
    ]
    work, lesson = simulate(leases, NODES, {}, suspends=True)
    check([work, lesson], NODES)
    assert (lesson.start, lesson.end) == (1800.0, 5400.0)
    assert work.end == 5400.0 + 30.0 + (HOUR - 1770.0)


def test_without_suspension_the_work_is_lost() -> None:
    leases = [
        lease("work", "best-effort", HOUR, machines=((1.0,),) * 4),
        lease("class", "reservation", HOUR, arrival=600.0, start=1800.0, machines=((1.0,),) * 4),
    ]
    work, _ = simulate(leases, NODES, {}, suspends=False)
    assert work.end == 5400.0 + HOUR


def test_an_immediate_lease_runs_at_once_or_never() -> None:
    leases = [
        lease("held", "reservation", HOUR, machines=((1.0,),) * 4, preemptible=False),
        lease("now", "immediate", 60.0, arrival=60.0),
        lease("later", "immediate", 60.0, arrival=2 * HOUR),
    ]
    runs = simulate(leases, NODES, {}, suspends=True)
    assert [run.state for run in runs] == ["DONE", "REJECTED", "DONE"]
    assert runs[2].start == 2 * HOUR


def expected() -> list[tuple[str, str, dict[str, str]]]:
    states: dict[tuple[str, str], dict[str, str]] = {}
    path = DATA / "expected_states.csv"
    for row in csv.DictReader(path.open()) if path.exists() else ():
        for suspension in row["suspension_setting"].split(" and "):
            states.setdefault((row["file"], suspension), {})[row["lease_id"]] = row["final_state"]
    return [(*key, found) for key, found in states.items()]


@pytest.mark.skipif(not DATA.exists(), reason=f"no lease workloads in {DATA}: set WEFT_DATA")
def test_haizeas_own_workloads_end_as_haizeas_own_tests_expect() -> None:
    assert expected()
    for file, suspension, states in expected():
        site = read_site(DATA / "tests" / file)
        runs = simulate(site.leases, site.capacity, site.real_seconds, suspends=suspension == "all")
        check(runs, site.capacity)
        assert {run.lease.id: run.state for run in runs} == states, (file, suspension)


@pytest.mark.skipif(not DATA.exists(), reason=f"no lease workloads in {DATA}: set WEFT_DATA")
def test_haizeas_other_workloads_give_nothing_twice() -> None:
    for path in sorted((DATA / "tests").glob("*.lwf")):
        site = read_site(path)
        for suspends in (True, False):
            check(simulate(site.leases, site.capacity, site.real_seconds, suspends=suspends), site.capacity)
