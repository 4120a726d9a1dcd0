"""What ends the wait for a rollout: only a promotion is a success, and nobody waits for what waits for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from weft.kinds.deployment import DEPLOYMENT
from weft.kinds.fields.deployment.scaling import Autoscale, check_autoscale
from weft.kinds.fields.deployment.status import mark_template
from weft.kinds.parts.deployment.verbs import UndoInput, UpdateInput
from weft.kinds.parts.schema_upgrade import upgrade
from weft.objects.errors import IllegalTransition, InvalidInput


def deployment(phase: str, observed: int = 2) -> dict[str, Any]:
    status = {"phase": phase, "observed_generation": observed, "template": "t", "message": "it waits for a word"}
    return {"kind": "deployment", "name": "web", "generation": 2, "spec": {"replicas": 1}, "status": status}


@pytest.mark.parametrize(
    ("phase", "observed", "fails"),
    [
        ("Paused", 2, True),
        ("Undecided", 2, True),
        ("RolledBack", 2, True),
        ("Progressing", 2, False),
        ("Promoted", 2, False),
        ("Paused", 1, False),  # the controller has not seen the command yet
    ],
)
@pytest.mark.parametrize("verb", ["update", "resume"])
def test_a_rollout_that_is_not_promoted_by_itself_ends_the_wait(
    verb: str, phase: str, observed: int, fails: bool
) -> None:
    find, goal = DEPLOYMENT.lifetime.find_failure, DEPLOYMENT.lifetime.goals[verb]
    assert find is not None
    obj = deployment(phase, observed)
    failure = find(obj, "deployment/web", goal)
    assert (failure is not None) == fails
    assert goal.reached(obj) == (phase == "Promoted")
    assert failure is None or failure.token == "notPromoted"
    if failure is not None and phase != "RolledBack":
        assert "it waits for a word" in failure.message and "weft rollout resume web" in (failure.hint or "")


@pytest.mark.parametrize("promotes", [False, True])
def test_a_rollout_that_waits_for_a_word_as_people_asked_is_no_failure(promotes: bool) -> None:
    obj = deployment("Paused")
    obj["status"] |= {"awaits": True, "verdict": "revision 2 is healthy on its instance"}
    obj["spec"]["strategy"] = {"type": "blue-green", "auto_promote": promotes}
    for verb in ("update", "resume"):
        goal = DEPLOYMENT.lifetime.goals[verb]
        assert goal.reached(obj) == (not promotes)
        assert goal.remark is not None
        assert "weft rollout resume web goes on, weft rollout undo web goes back" in goal.remark(obj)
    assert not DEPLOYMENT.lifetime.goals["wait"].reached(obj)


@pytest.mark.parametrize(
    ("phase", "back", "says"), [("RolledBack", False, "has gone"), ("Progressing", True, "is going")]
)
def test_an_undo_of_what_went_back_by_itself_takes_the_good_version_away_only_by_its_number(
    phase: str, back: bool, says: str
) -> None:
    undo = next(one for one in DEPLOYMENT.verbs if one.name == "undo").change
    assert undo is not None
    obj = deployment(phase)
    revisions = [{"number": n, "template": {"image": f"shop:{n}"}, "outcome": "Promoted"} for n in (1, 2)]
    revisions.append({"number": 3, "template": {"image": "shop:3"}, "outcome": "RolledBack"})
    obj["status"] |= {"stable": 2, "revision": 2, "back": back, "revisions": revisions}
    obj["actions"] = {"rollout": 2, "undos": 0}
    with pytest.raises(IllegalTransition, match=f"{says} back to revision 2 already") as problem:
        undo(obj, UndoInput())
    assert "--to N goes back further" in (problem.value.hint or "")
    assert undo(obj, UndoInput(revision=1))["template"] == {"image": "shop:1"}


@pytest.mark.parametrize(("phase", "next_command"), [("Progressing", "status web --watch"), ("Paused", "resume web")])
def test_a_second_update_is_refused_with_what_ends_the_first(phase: str, next_command: str) -> None:
    update = next(one for one in DEPLOYMENT.verbs if one.name == "update").change
    assert update is not None
    obj = deployment(phase)
    obj["status"] |= {"stable": 1, "revision": 2}
    with pytest.raises(IllegalTransition, match="takes one update at a time") as problem:
        update(obj, UpdateInput())
    assert f"weft rollout {next_command}" in (problem.value.hint or "")


def test_the_metric_that_an_error_proposes_is_one_that_weft_writes() -> None:
    with pytest.raises(InvalidInput) as problem:
        check_autoscale(Autoscale(max=5, metric=" ", target=1.0))
    named = re.search(r"metric: (\w+)", problem.value.hint or "")
    assert named is not None
    assert f"`{named[1]}`" in (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()


def test_a_pause_without_a_rollout_says_how_one_begins() -> None:
    pause = next(one for one in DEPLOYMENT.verbs if one.name == "pause").change
    assert pause is not None
    with pytest.raises(IllegalTransition, match="there is no rollout to pause") as problem:
        pause(deployment("Promoted"), None)
    assert problem.value.hint == "weft deployment update web … begins one"


def test_an_undo_to_what_runs_already_is_refused() -> None:
    verb = next(one for one in DEPLOYMENT.verbs if one.name == "undo")
    undo, ask = verb.change, verb.act
    assert undo is not None and ask is not None
    obj = deployment("Promoted")
    revisions = [{"number": number, "outcome": "Promoted", "template": {}} for number in (1, 2)]
    obj["actions"] = {"rollout": 2, "undos": 0}
    obj["status"] |= {"revision": 2, "stable": 2, "revisions": revisions}
    with pytest.raises(IllegalTransition, match="runs revision 2 already"):
        undo(obj, UndoInput(revision=2))
    assert undo(obj, UndoInput(revision=1)) and ask(obj, UndoInput(revision=1)) == {"rollout": 3, "undos": 1}
    obj["status"]["revision"] = 3  # one that is on its way, or failed
    assert undo(obj, UndoInput(revision=2))


def test_a_template_of_before_is_not_rolled_out_again_for_what_is_no_longer_in_it() -> None:
    old = {"image": "i:1", "restart_generation": 0, "pulls": 0}
    revision = {"number": 1, "template": old, "labels": {"a": "b"}}
    status = {"template": mark_template(old, {"a": "b"}), "revisions": [revision]}
    stored = {"schema": 1, "spec": {"workload": "container", "template": old, "labels": {"a": "b"}}, "status": status}
    fresh = upgrade(DEPLOYMENT, stored)
    assert fresh is not None and fresh["spec"]["template"] == {"image": "i:1"}
    assert [one["template"] for one in fresh["status"]["revisions"]] == [{"image": "i:1"}]
    assert fresh["status"]["template"] == mark_template(fresh["spec"]["template"], {"a": "b"})
