"""Automatic rebalancing: two looks running, within a budget, and one question at a time."""

from __future__ import annotations

import msgspec
import pytest

from weft.controllers.rebalance.automatic import ANSWER_SECONDS, LOOK_SECONDS, Seen, Spent, count_spent, plan_automatic
from weft.controllers.rebalance.plan import Situation, plan_rebalance
from weft.kinds.rebalance_plan import PlannedStep, RebalancePlanActions, RebalancePlanSpec, RebalancePlanStatus
from weft.kinds.rebalance_policy import RebalancePolicySpec, RebalancePolicyStatus, describe_budget
from weft.kinds.report import ReportStatus

NOW = 1_700_000_000.0


def step(number: int) -> PlannedStep:
    return PlannedStep(workload=f"vm/web-{number}", project="default", uid=f"u{number}", from_="n1", to="n2", bytes=100)


GAIN = ReportStatus(phase="Done", score_before=20.0, score_after=10.0, steps=[step(0), step(1)])


def test_a_plan_begins_only_if_it_gains_at_two_looks_running() -> None:
    status, spec = RebalancePolicyStatus(), RebalancePolicySpec(bytes_per_hour=1000)
    asked = plan_automatic("auto-1", spec, status, Seen(spent=Spent(3, 400)), NOW)
    assert asked.ask is not None and (asked.ask.migrations, asked.ask.bytes, asked.ask.hours) == (7, 600, 4)
    assert asked.status.report == "auto-1-1" and asked.plan is None
    first = plan_automatic("auto-1", spec, asked.status, Seen(asked=True, answer=GAIN), NOW + 1)
    assert first.plan is None and first.status.gains_since == NOW + 1 and "next look" in first.status.message
    early = plan_automatic("auto-1", spec, first.status, Seen(), NOW + 2)
    assert early.ask is None and early.wait == LOOK_SECONDS - 2
    again = plan_automatic("auto-1", spec, first.status, Seen(), NOW + LOOK_SECONDS)
    assert again.ask is not None and again.status.report == "auto-1-2"
    second = plan_automatic("auto-1", spec, again.status, Seen(asked=True, answer=GAIN), NOW + LOOK_SECONDS + 1)
    assert second.plan is not None and second.plan.steps == GAIN.steps
    assert second.status.plan == "auto-1-2" and second.status.gains_since is None


@pytest.mark.parametrize(("score", "begins"), [(19.0, False), (20.9, False), (21.1, True)])
def test_after_people_undid_a_plan_nothing_begins_until_load_is_less_even_than_then(score: float, begins: bool) -> None:
    status = RebalancePolicyStatus(looks=9, looked_at=NOW, report="auto-1-9", gains_since=NOW - 600)
    seen = Seen(asked=True, answer=msgspec.structs.replace(GAIN, score_before=score), undone=("auto-1-5", 20.0))
    took = plan_automatic("auto-1", RebalancePolicySpec(), status, seen, NOW + 1)
    assert (took.plan is not None) == begins and took.status.gains_since is None
    assert begins or "delete rebalanceplan/auto-1-5" in took.status.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ReportStatus(phase="Done", message="3 of 3 VMs have no forecast, so they stay"), "no forecast"),
        (msgspec.structs.replace(GAIN, score_after=19.5), "too small"),
    ],
)
def test_what_gains_too_little_is_forgotten(answer: ReportStatus, words: str) -> None:
    status = RebalancePolicyStatus(looks=1, looked_at=NOW, report="auto-1-1", gains_since=NOW - 600)
    took = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(asked=True, answer=answer), NOW + 1)
    assert took.plan is None and took.status.gains_since is None and words in took.status.message


@pytest.mark.parametrize(
    ("seen", "spec", "words"),
    [
        (Seen(spent=Spent(10, 0)), {}, "10 of 10 migrations"),
        (Seen(spent=Spent(1, 2048)), {"bytes_per_hour": 2048}, "2 KiB of 2 KiB"),
        (Seen(other="tidy"), {}, "rebalanceplan/tidy is under way"),
    ],
)
def test_nothing_is_asked_without_a_budget_or_beside_another_plan(seen: Seen, spec: dict[str, int], words: str) -> None:
    done = plan_automatic("auto-1", RebalancePolicySpec(**spec), RebalancePolicyStatus(), seen, NOW)  # type: ignore[arg-type]
    assert done.ask is None and done.plan is None and words in done.status.message


def test_a_plan_that_has_ended_is_no_longer_said_to_be_under_way() -> None:
    status = RebalancePolicyStatus(looked_at=NOW)
    busy = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(other="tidy"), NOW + 1).status
    assert "tidy" in busy.message
    assert plan_automatic("auto-1", RebalancePolicySpec(), busy, Seen(), NOW + 2).status == status


def test_a_plan_isnt_made_if_another_began_since_it_was_asked_for() -> None:
    status = RebalancePolicyStatus(looks=2, looked_at=NOW, report="auto-1-2", gains_since=NOW - 600)
    took = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(asked=True, answer=GAIN, other="tidy"), NOW + 1)
    assert took.plan is None and "but rebalanceplan/tidy" in took.status.message


def test_a_question_that_nobody_answers_is_asked_again() -> None:
    status = RebalancePolicyStatus(looks=1, looked_at=NOW, report="auto-1-1")
    waits = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(asked=True), NOW + 1)
    assert waits.ask is None and waits.status == status
    lost = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(asked=True), NOW + ANSWER_SECONDS)
    assert lost.status.report == ""
    again = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(), NOW + LOOK_SECONDS)
    assert again.ask is not None and again.status.report == "auto-1-2"


def test_plans_of_the_last_hour_count_and_older_ones_dont() -> None:
    plan = RebalancePlanSpec(steps=[step(0), step(1)])
    assert count_spent([(NOW - 10, plan), (NOW - 3600, plan)], NOW) == Spent(2, 200)


def test_a_plan_begins_no_more_within_an_hour_than_it_may() -> None:
    spec = RebalancePlanSpec(steps=[step(n) for n in range(4)], concurrent=4, per_hour=2)
    asked = RebalancePlanActions(start=True)
    seen = [Situation(node="n1", migration=f"m{n}") for n in range(4)]
    first = plan_rebalance(spec, asked, RebalancePlanStatus(), seen, "", NOW)
    assert [one.number for one in first.begin] == [0, 1]
    done = [
        Situation(node="n2" if n < 2 else "n1", migration=f"m{n}", phase="Succeeded" if n < 2 else "") for n in range(4)
    ]
    second = plan_rebalance(spec, asked, first.status, done, "", NOW + 3599)
    assert second.begin == [] and second.status.phase == "Running"
    assert [one.number for one in plan_rebalance(spec, asked, second.status, done, "", NOW + 3600).begin] == [2, 3]


def test_undo_cancels_what_waits_for_capacity_and_leaves_it_out() -> None:
    spec, asked = RebalancePlanSpec(steps=[step(0), step(1)]), RebalancePlanActions(start=True)
    begun = plan_rebalance(
        spec, asked, RebalancePlanStatus(), [Situation(node="n1", migration=f"m{n}") for n in range(2)], "", NOW
    )
    asked = msgspec.structs.replace(asked, undo=True)
    seen = [
        Situation(node="n1", migration="m0", phase="Pending"),
        Situation(node="n1", migration="m1", phase="Migrating"),
    ]
    undone = plan_rebalance(spec, asked, begun.status, seen, "", NOW + 1)
    assert undone.cancel == [0] and undone.begin == []
    seen[0] = msgspec.structs.replace(seen[0], cancelled=True)
    assert plan_rebalance(spec, asked, undone.status, seen, "", NOW + 2).cancel == []
    seen[0] = msgspec.structs.replace(seen[0], phase="Cancelled")
    seen[1] = msgspec.structs.replace(seen[1], phase="Succeeded", node="n2")
    arrived = plan_rebalance(spec, asked, undone.status, seen, "", NOW + 3)
    seen[1] = msgspec.structs.replace(seen[1], phase="")  # its way back has none yet
    back = plan_rebalance(spec, asked, arrived.status, seen, "", NOW + 4)
    assert back.status.steps[0].state == "Skipped" and [(one.number, one.to) for one in back.begin] == [(1, "n1")]


def test_one_migration_is_said_in_the_singular() -> None:
    status = RebalancePolicyStatus(looks=1, looked_at=NOW, report="auto-1-1")
    answer = msgspec.structs.replace(GAIN, steps=[step(0)])
    took = plan_automatic("auto-1", RebalancePolicySpec(), status, Seen(asked=True, answer=answer), NOW + 1)
    assert took.status.message.startswith("1 migration would gain")
    assert describe_budget({"spec": {"migrations_per_hour": 1}}) == "1 migration an hour"
    assert describe_budget({"spec": {"migrations_per_hour": 2}}) == "2 migrations an hour"
