"""Leases on nodes over time: what is promised is kept, and nothing is given twice."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import msgspec
import pytest
from benchmarks.leases.drawn import draw, judge
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples, mark_long

from weft.scheduler.gang.search_budget import ProjectsBudget
from weft.scheduler.lease.availability import Availability, Checks
from weft.scheduler.lease.plan import Lease, Mode, Standing
from weft.scheduler.lease.promises import keep_work
from weft.scheduler.simulate.haizea import read_seconds, read_site
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


ALL = ((1.0,),) * 4


@pytest.mark.parametrize("preemptible", [True, False])
@pytest.mark.parametrize("suspends", [True, False])
def test_a_lease_with_a_deadline_is_planned_around_an_accepted_reservation(preemptible: bool, suspends: bool) -> None:
    lesson = lease("class", "reservation", HOUR, start=3 * HOUR, machines=ALL, preemptible=False)
    work = lease("work", "deadline", 2 * HOUR, arrival=60.0, start=2 * HOUR, machines=ALL, suspend_seconds=32.0)
    work = msgspec.structs.replace(work, deadline=5.1 * HOUR, preemptible=preemptible)
    late = lease("late", "reservation", 600.0, arrival=2.5 * HOUR, start=5 * HOUR, machines=ALL)
    runs = simulate([lesson, work, late], NODES, {}, suspends=suspends)
    check(runs, NODES)
    assert [(piece.start, piece.end) for piece in runs[1].pieces] == [(2 * HOUR, 3 * HOUR), (4 * HOUR, 5 * HOUR + 64.0)]
    assert runs[2].state == "REJECTED"  # nothing that comes later takes its time
    tight = msgspec.structs.replace(work, deadline=5 * HOUR)
    assert simulate([lesson, tight], NODES, {}, suspends=suspends)[1].state == "REJECTED"


def test_what_is_not_preemptible_is_suspended_for_nothing_that_comes_later() -> None:
    work = lease("work", "deadline", 2 * HOUR, start=HOUR, machines=ALL, deadline=9 * HOUR, preemptible=False)
    lesson = lease("class", "reservation", HOUR, arrival=1.2 * HOUR, start=1.5 * HOUR, machines=ALL)
    early, later = simulate([work, lesson], NODES, {}, suspends=True)
    assert (early.start, early.end, later.state) == (HOUR, 3 * HOUR, "REJECTED")


def test_what_there_is_no_time_to_suspend_begins_again_where_its_deadline_lets_it() -> None:
    work = lease("work", "deadline", HOUR, machines=ALL, deadline=9 * HOUR, suspend_seconds=32.0)
    urgent = lease("urgent", "deadline", HOUR, arrival=1800.0, start=1800.0, machines=ALL, deadline=1800.0 + HOUR)
    runs = simulate([work, urgent], NODES, {}, suspends=True)
    check(runs, NODES)
    assert [run.state for run in runs] == ["DONE", "DONE"] and runs[0].end == 1800.0 + 2 * HOUR


def test_three_leases_share_two_nodes_where_one_of_them_goes_on_later() -> None:
    leases = [lease(str(number), "deadline", 2 * HOUR, deadline=3 * HOUR) for number in range(3)]
    runs = simulate(leases, NODES[:2], {}, suspends=True)
    check(runs, NODES[:2])
    assert {run.state for run in runs} == {"DONE"}


@pytest.mark.parametrize("preemptible", [True, False])
def test_a_small_machine_of_a_reservation_leaves_the_larger_node_to_a_deadline(preemptible: bool) -> None:
    work = lease(
        "work", "deadline", 2 * HOUR, start=HOUR, deadline=3 * HOUR, machines=((2.0,),), preemptible=preemptible
    )
    class_ = lease("class", "reservation", HOUR, start=2 * HOUR, machines=((1.0,), (3.0,)))
    nodes = [(3.0,), (2.0,), (1.0,)]
    runs = simulate([work, class_], nodes, {}, suspends=False)
    check(runs, nodes)
    assert [run.state for run in runs] == ["DONE", "DONE"]


@pytest.mark.parametrize("seeds", mark_long([range(40), range(5770, 5780), range(40, 300)], range(40, 300)))
def test_what_an_exhaustive_search_can_place_is_not_rejected_and_what_is_accepted_is_kept(seeds: range) -> None:
    outcomes = [judge(draw(seed)) for seed in seeds]
    assert sum(outcome.rejected for outcome in outcomes) > len(seeds) // 2
    assert [
        seed for seed, outcome in zip(seeds, outcomes, strict=True) if outcome.wrongly_rejected or outcome.broken
    ] == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("01:30:00.50", 5400.5), ("1:06:30:00.00", 109800.0), ("40:00:00:00", 40 * 86400.0)]
)
def test_times_of_haizea_may_have_days(text: str, seconds: float) -> None:
    assert read_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "01:30", "1:2:3:4:5", "-1:00:00:00", "a:00:00:00", "0:0:0:nan", "1:-1:00:00"]
)
def test_what_is_no_time_of_haizea_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        read_seconds(text)


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


def test_a_plan_looks_only_at_its_nodes_and_no_more_often_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many small leases there are: each makes two more times at which one could begin, or be saved."""
    looked = list[Availability]()
    fits = Availability.fits
    monkeypatch.setattr(Availability, "fits", lambda self, *given: looked.append(self) or fits(self, *given))

    def plan(nodes: int, checks: Checks) -> int:
        looked.clear()
        there = [Availability((64.0,)) for _ in range(nodes)]
        for number, node in enumerate(there):
            node.take(0.0, math.inf, (60.0,))
            for small in range(50):
                node.take(number + 900.0 * small, number + 900.0 * small + 100.0, (0.1,))
        fields = {"machines": ((8.0,),), "deadline": 12 * HOUR, "suspend_seconds": 30.0, "on": (0,), "stays": True}
        asked = lease("asked", "deadline", HOUR, **fields)
        assert keep_work([Standing(asked)], there, 0.0, checks, searches=False) is None
        return len(looked)

    assert plan(30, Checks()) == plan(1, Checks()) > 100
    assert plan(30, Checks(100)) <= 100


def test_a_project_that_searches_all_the_time_keeps_no_other_from_searching() -> None:
    budget, searches = ProjectsBudget(), 0
    for now in range(1000):
        for project in ("greedy", "second"):
            if budget.allows(project, now):
                budget.spend(project, now, now + 1.0)
                searches += 1
        assert budget.allows("rare", now)
    assert 80 < searches < 120


def test_work_is_kept_where_its_memory_is_and_runs_only_where_it_may() -> None:
    node = (1.0,)
    work = lease("work", "deadline", 2 * HOUR, deadline=3.2 * HOUR, suspend_seconds=32.0, on=(1, 0), stays=True)
    class_ = lease("class", "reservation", HOUR, start=HOUR, on=(1,), preemptible=False)
    runs, promised = Standing(work, nodes=(1,)), Standing(class_)
    plan = keep_work([runs, promised], [Availability(node), Availability(node)], 0.0, Checks(), searches=True)
    assert plan is not None
    assert [(piece.start, piece.end, piece.nodes) for piece in plan["work"]] == [
        (0.0, HOUR, (1,)),
        (2 * HOUR, 3 * HOUR + 64.0, (1,)),
    ]
    assert [piece.nodes for piece in plan["class"]] == [(1,)]
    late = msgspec.structs.replace(work, deadline=3 * HOUR)  # it would have to begin again, on the other node
    for searches in (True, False):
        standings = [Standing(late, nodes=(1,)), promised]
        assert keep_work(standings, [Availability(node), Availability(node)], 0.0, Checks(), searches=searches) is None
    waits = [Standing(late), promised]
    found = keep_work(waits, [Availability(node), Availability(node)], 0.0, Checks(), searches=True)
    assert found is not None and [piece.nodes for piece in found["work"]] == [(0,)]
