"""What people read of a Conversion, and when it is as they asked."""

from __future__ import annotations

import io
from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.conversion.progress import Converting, describe_end, describe_next
from weft.cli.verbs.convert import _find_error
from weft.cli.wait.watch import Result, Wait
from weft.kinds.operation import find_failure, plan_goal
from weft.kinds.registry import BY_NAME

TARGET = Target(BY_NAME["conversion"], "web-ab12c")


def conversion(phase: str, **status: Any) -> dict[str, Any]:
    return {
        "kind": "conversion",
        "name": "web-ab12c",
        "spec": {"workload": "container/web", "to": "vm"},
        "status": {"phase": phase, "new": "vm/web", **status},
    }


def test_each_step_is_told_once_off_a_terminal_and_the_end_elsewhere() -> None:
    out = io.StringIO()
    progress = Converting(lambda: 0.0, stream=out)
    for phase, note in (
        ("Pending", ""),
        ("Preparing", "image a is being created"),
        ("Starting", ""),
        ("Starting", "x"),
    ):
        progress.show(TARGET, conversion(phase, message=note))
    progress.show(TARGET, conversion("AwaitingConfirmation", message="vm/web runs"))
    assert out.getvalue().splitlines() == [
        "preparing     container/web → vm/web   image a is being created",
        "starting      container/web → vm/web",
    ]


def test_the_end_says_where_it_runs_for_how_long_nothing_did_and_what_is_to_be_done() -> None:
    ended = conversion("AwaitingConfirmation", stopped_at=10.0, running_at=14.25)
    assert describe_end(ended, "n2") == "vm/web  Running on n2 in place of container/web; downtime 4.2 s"
    assert "conversion confirm web-ab12c" in describe_next(ended) and "conversion undo web-ab12c" in describe_next(
        ended
    )
    assert describe_end(conversion("AwaitingConfirmation"), "") == "vm/web  Stopped, as container/web was"
    assert describe_next(conversion("Confirmed")) == "container/web is being deleted"


@pytest.mark.parametrize(
    ("verb", "phase", "reached"),
    [
        ("create", "AwaitingConfirmation", True),
        ("create", "Confirmed", True),
        ("create", "Starting", False),
        ("confirm", "AwaitingConfirmation", False),
        ("confirm", "Confirmed", True),
        ("undo", "Undoing", False),
        ("undo", "Undone", True),
    ],
)
def test_what_a_verb_on_a_conversion_leads_to(verb: str, phase: str, reached: bool) -> None:
    goal = plan_goal("conversion", verb)
    assert goal is not None and goal.reached(conversion(phase)) is reached


def test_one_that_has_ended_otherwise_ends_the_waiting() -> None:
    goal = plan_goal("conversion", "confirm")
    assert goal is not None
    failure = find_failure(conversion("Undone", message="asked for"), TARGET.what, goal)
    assert failure is not None and "Undone: asked for" in failure.message
    assert find_failure(conversion("Undoing"), TARGET.what, goal) is None


def test_what_became_of_the_old_one_is_said_with_why_it_was_not_converted() -> None:
    goal = plan_goal("conversion", "create")
    assert goal is not None

    def told(**status: Any) -> Any:
        return _find_error(TARGET, Result(Wait(TARGET, goal), conversion(**status)))

    assert told(phase="AwaitingConfirmation") is None
    untouched = told(phase="Failed", reason="nameTaken", message="vm/web exists already")
    assert untouched.token == "nameTaken" and "container/web is unchanged" in untouched.hint
    back = told(phase="Failed", reason="insufficientResources", message="finds no place", stopped_at=1.0)
    assert back.token == "insufficientResources" and "has its volumes and addresses again" in back.hint
    assert "has its volumes and addresses again" in told(phase="Undone", reason="undone", message="asked for").hint
