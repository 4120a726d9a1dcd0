"""What the soak of functions takes for a kept promise, and what for a broken one."""

from __future__ import annotations

import pytest
from benchmarks.soak.verdicts import Call, Kill, judge_call, judge_event

GATEWAY, AGENT, RUNTIME = (Kill(what, 100.0) for what in ("gateway", "agent", "runtime"))


def call(heard: str, act: str = "well", how: str = "once", began: float = 99.0) -> Call:
    return Call(7, "thumb", how, act, heard, began, began + 2)


@pytest.mark.parametrize(
    ("told", "ran", "kills"),
    [
        (call("answered"), 1, []),
        (call("ValueError", "error"), 1, []),
        (call("TooManyRequestsException"), 0, []),
        (call("InvocationLostException"), 1, [AGENT]),
        (call("InvocationLostException"), 0, [AGENT]),
        (call("Runtime.ExitError"), 1, [RUNTIME]),
        (call("broken (ConnectionClosedError)"), 1, [GATEWAY]),
    ],
)
def test_an_answer_a_typed_error_and_a_line_that_broke_under_a_kill_are_right(
    told: Call, ran: int, kills: list[Kill]
) -> None:
    assert judge_call(told, ran, kills) == ""


@pytest.mark.parametrize(
    ("told", "ran", "kills"),
    [
        (call("answered"), 2, [GATEWAY, AGENT]),  # nobody asked for the second run
        (call("answered"), 0, []),
        (call("answered 8"), 1, []),
        (call("answered", "error"), 1, []),
        (call("ServiceUnavailableException"), 1, [AGENT]),  # it is said not to have run
        (call("InvocationLostException"), 1, []),
        (call("InvocationLostException"), 1, [AGENT._replace(at=10.0)]),
        (call("Runtime.ExitError"), 1, [GATEWAY]),
        (call("broken (ConnectionClosedError)"), 0, [AGENT]),
        (call("broken (ReadTimeoutError)"), 0, [GATEWAY]),  # neither an answer nor an error
        (call("InternalFailure"), 0, [GATEWAY]),
    ],
)
def test_what_ran_twice_is_untold_or_came_of_nothing_is_wrong(told: Call, ran: int, kills: list[Kill]) -> None:
    assert judge_call(told, ran, kills) != ""


def test_an_event_that_was_accepted_runs_and_one_that_fails_is_tried_again_and_kept() -> None:
    well, bad = call("accepted", how="event"), call("accepted", "error", "event")
    assert (
        judge_event(well, 1, False, []) == judge_event(bad, 2, True, []) == judge_event(well, 2, False, [GATEWAY]) == ""
    )
    assert judge_event(well, 0, False, [GATEWAY]) and judge_event(well, 2, False, []) and judge_event(well, 1, True, [])
    assert judge_event(bad, 1, True, []) and judge_event(bad, 2, False, [AGENT])
    assert judge_event(call("broken (X)", how="event"), 0, False, [GATEWAY]) == ""
    assert judge_event(call("broken (X)", how="event"), 0, False, [AGENT])
