"""What a RebalancePlan may say, and when it may be started and undone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from weft.controllers.rebalance.plan import Situation, plan_rebalance
from weft.kinds.operation import find_failure, plan_goal
from weft.kinds.rebalance_plan import (
    MOST_MIGRATIONS,
    REBALANCE_PLAN,
    PlannedStep,
    RebalancePlanActions,
    RebalancePlanSpec,
    RebalancePlanStatus,
    StepState,
    check_plan,
)
from weft.kinds.rebalance_policy import REBALANCE_POLICY, RebalancePolicySpec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput
from weft.objects.schema import read_strict


def step(name: str = "vm/web", **more: Any) -> dict[str, Any]:
    return {"workload": name, "project": "default", "uid": "u", "from": "n1", "to": "n2", **more}


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "does nothing"),
        ([step("volume/x")], "not a workload that can migrate"),
        ([step("vm/")], "not a workload that can migrate"),
        ([step(to="n1")], "is on n1 already"),
        ([step(), step()], "migrates twice"),
        ([step(f"vm/x{number}") for number in range(MOST_MIGRATIONS + 1)], "steps"),
        ([step(to="../etc")], "steps"),
        ([step(bytes=-1)], "bytes"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_its_field(steps: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_plan(read_strict({"steps": steps}, RebalancePlanSpec))


def obj(phase: str, **asked: Any) -> dict[str, Any]:
    return {
        "kind": "rebalanceplan",
        "name": "tidy",
        "spec": {"steps": [step()]},
        "actions": {"start": False, "undo": False, **asked},
        "status": {"phase": phase},
    }


def test_what_is_over_is_not_started_and_what_never_began_is_not_undone() -> None:
    start, undo = (REBALANCE_PLAN.verb(name) for name in ("start", "undo"))
    assert start is not None and start.act is not None and undo is not None and undo.act is not None
    assert start.act(obj("Proposed"), None)["start"] is True
    assert undo.act(obj("Done", start=True), None)["undo"] is True
    for phase in ("Done", "Refused", "Undone"):
        with pytest.raises(IllegalTransition, match="is over"):
            start.act(obj(phase, start=True), None)
    for made in (obj("Proposed"), obj("Refused", start=True)):
        with pytest.raises(IllegalTransition, match="nothing to undo"):
            undo.act(made, None)


def test_one_that_has_been_started_is_waited_for_until_it_is_over() -> None:
    goal = plan_goal("rebalanceplan", "wait")
    assert goal is not None
    reached = {
        phase: goal.reached(obj(phase, start=True)) for phase in ("Proposed", "Running", "Done", "Undoing", "Undone")
    }
    assert reached == {"Proposed": True, "Running": False, "Done": True, "Undoing": False, "Undone": True}


@pytest.mark.parametrize(
    ("given", "words"), [({"migrations_per_hour": 0}, "auto off"), ({"migrations_per_hour": 1}, "")]
)
def test_a_budget_of_nothing_is_refused_with_what_switches_it_off(given: dict[str, Any], words: str) -> None:
    check = REBALANCE_POLICY.admission.check
    assert check is not None
    with pytest.raises(InvalidInput) if words else nullcontext() as refused:
        check(RebalancePolicySpec(**given))
    assert not words or (refused is not None and words in refused.value.hint)


def over(phase: str, message: str, *states: str) -> dict[str, Any]:
    status = {"phase": phase, "message": message, "steps": [{"state": one} for one in states]}
    return {**obj(phase, start=True), "status": status}


def test_a_plan_of_which_a_migration_failed_is_no_success_and_its_end_says_what_came_of_each() -> None:
    start, undo = plan_goal("rebalanceplan", "start"), plan_goal("rebalanceplan", "undo")
    assert start is not None and undo is not None and start.answer is not None and undo.answer is not None
    fine = over("Done", "1 migrated, 1 left out; n3 is cordoned", "Done", "Skipped")
    assert start.reached(fine) and start.answer(fine) == "Done: 1 migrated, 1 left out; n3 is cordoned"
    failed = over("Done", "1 migrated, 1 failed; it stopped", "Done", "Failed")
    assert not start.reached(failed)
    problem = find_failure(failed, "rebalanceplan/tidy", start)
    assert isinstance(problem, DriverFailed) and "1 failed; it stopped" in problem.message
    assert "undo tidy" in problem.hint
    assert find_failure(failed, "rebalanceplan/tidy", undo) is None  # its undo has only been requested
    back = over("Undone", "1 back, 1 failed; it stopped", "Back", "Failed")
    assert undo.reached(back) and undo.answer(back) == "Undone: 1 back, 1 failed; it stopped"


def test_an_undo_waits_for_what_migrates_and_then_goes_back_in_the_other_order() -> None:
    steps = [msgspec.convert(step(f"vm/w{number}", uid=f"u{number}"), PlannedStep) for number in range(3)]
    spec, asked = RebalancePlanSpec(steps=steps, concurrent=1), RebalancePlanActions(start=True, undo=True)
    states = [StepState(state="Done"), StepState(state="Migrating", migration="m1"), StepState()]
    status = RebalancePlanStatus(phase="Running", steps=states, started_at=1.0)
    seen = [
        Situation(node="n2", migration="back-0"),
        Situation(node="n1", migration="m1", phase="Migrating"),
        Situation(node="n1"),
    ]
    waits = plan_rebalance(spec, asked, status, seen, "", 2.0)
    assert [one.state for one in waits.status.steps] == ["Done", "Migrating", "Skipped"] and waits.begin == []
    seen[1] = Situation(node="n2", migration="m1", phase="Succeeded")
    came = plan_rebalance(spec, asked, waits.status, seen, "", 3.0)
    assert [one.state for one in came.status.steps] == ["Done", "Done", "Skipped"] and came.begin == []
    seen[1] = Situation(node="n2", migration="back-1")  # of the way back from now on
    now = plan_rebalance(spec, asked, came.status, seen, "", 4.0)
    assert [one.state for one in now.status.steps] == ["Done", "Returning", "Skipped"]
    assert [(one.number, one.to) for one in now.begin] == [(1, "n1")] and now.status.phase == "Undoing"


def test_what_a_lost_node_was_to_take_is_left_out_and_the_plan_ends() -> None:
    spec, asked = RebalancePlanSpec(steps=[msgspec.convert(step(), PlannedStep)]), RebalancePlanActions(start=True)
    status = RebalancePlanStatus(phase="Running", steps=[StepState()], started_at=1.0)
    ended = plan_rebalance(spec, asked, status, [Situation(node="n1", trouble="n2 is NotReady")], "", 2.0)
    assert (ended.status.phase, ended.status.message, ended.begin) == ("Done", "1 left out; n2 is NotReady", [])
