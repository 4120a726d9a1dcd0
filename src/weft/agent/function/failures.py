"""Failures of invocations and instances, as reported to callers. Pure."""

from __future__ import annotations

import signal

import msgspec

from weft.contracts.driver.function import Recipe
from weft.contracts.driver.sandbox import Ended
from weft.objects.errors import WeftError

TIMED_OUT, OUT_OF_MEMORY, EXITED = "Function.TimedOut", "Function.OutOfMemory", "Runtime.ExitError"
TOO_LARGE, RECLAIMED, NO_ANSWER = "Function.ResponseTooLarge", "Function.Reclaimed", "Runtime.NoAnswer"
INIT_TIMED_OUT = "Runtime.InitTimedOut"
MOST_MESSAGE = 4096
MOST_TYPE = 200  # as in Lambda's header


class Failure(msgspec.Struct, frozen=True):
    error_type: str  # stable
    payload: bytes  # JSON as Lambda's

    @property
    def message(self) -> str:
        """The JSON as text."""
        return self.payload.decode(errors="replace")


def fail(error_type: str, message: str) -> Failure:
    return Failure(error_type, msgspec.json.encode({"errorType": error_type, "errorMessage": message[:MOST_MESSAGE]}))


def fail_with(problem: WeftError) -> Failure:
    """The failure for a problem of a driver or a fetch; a runtime's own error is passed on unchanged."""
    error = problem.details.get("error")
    if isinstance(error, dict):
        return Failure(problem.token, msgspec.json.encode(error))
    if isinstance(error, str) and error:
        return Failure(problem.token, error.encode())
    return fail(problem.token, problem.message)


def is_own_fault(problem: WeftError) -> bool:
    """Whether the function's own code is at fault: its reason has a dot. Else this node is, and another may succeed."""
    return "." in problem.token


def describe_failure(body: bytes, header: str) -> Failure:
    """The failure from a runtime's error report; a body that isn't Lambda's JSON is wrapped in it."""
    try:
        error = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return fail(header or "Runtime.Unknown", body.decode(errors="replace"))
    error_type = error.get("errorType")
    named = error_type[:MOST_TYPE] if isinstance(error_type, str) else ""
    return Failure(named or header or "Runtime.Unknown", body)


def explain_end(ended: Ended, recipe: Recipe) -> Failure:
    """The failure for an instance that ended by itself."""
    if ended.out_of_memory:
        return fail(OUT_OF_MEMORY, f"the function used more than its {recipe.memory >> 20} MiB of memory")
    if ended.signal is not None:
        try:
            name = signal.Signals(ended.signal).name
        except ValueError:
            name = f"signal {ended.signal}"
        return fail(EXITED, f"the runtime was ended by {name}")
    return fail(EXITED, f"the runtime exited with status {ended.code}")
