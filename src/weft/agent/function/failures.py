"""How the failure of an invocation or an instance is reported to its caller. Pure."""

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
MOST_TYPE = 200  # as Lambda has it in its header


class Failure(msgspec.Struct, frozen=True):
    """How the caller is told that it didn't go well: a stable type, and the JSON that Lambda's callers know."""

    error_type: str
    payload: bytes

    @property
    def message(self) -> str:
        """The words in its JSON."""
        return self.payload.decode(errors="replace")


def fail(error_type: str, message: str) -> Failure:
    return Failure(error_type, msgspec.json.encode({"errorType": error_type, "errorMessage": message[:MOST_MESSAGE]}))


def fail_with(problem: WeftError) -> Failure:
    """What a driver or a fetch said, as a caller is told it; a runtime's own words as they are."""
    said = problem.details.get("error")
    if isinstance(said, dict):
        return Failure(problem.token, msgspec.json.encode(said))
    if isinstance(said, str) and said:
        return Failure(problem.token, said.encode())
    return fail(problem.token, problem.message)


def is_own_fault(problem: WeftError) -> bool:
    """Whether the function's own code is at fault: its reason has a dot then. Else it is this node, and another may do better."""
    return "." in problem.token


def describe_failure(body: bytes, header: str) -> Failure:
    """What the runtime said of an error; a body that isn't Lambda's JSON is put into one."""
    try:
        said = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return fail(header or "Runtime.Unknown", body.decode(errors="replace"))
    error_type = said.get("errorType")
    named = error_type[:MOST_TYPE] if isinstance(error_type, str) else ""
    return Failure(named or header or "Runtime.Unknown", body)


def explain_end(ended: Ended, recipe: Recipe) -> Failure:
    """The end of an instance that nobody asked for."""
    if ended.out_of_memory:
        return fail(OUT_OF_MEMORY, f"the function used more than its {recipe.memory >> 20} MiB of memory")
    if ended.signal is not None:
        try:
            name = signal.Signals(ended.signal).name
        except ValueError:
            name = f"signal {ended.signal}"
        return fail(EXITED, f"the runtime was ended by {name}")
    return fail(EXITED, f"the runtime exited with status {ended.code}")
