"""Whether each invocation kept its promise, from what its caller heard, how often it ran, and when what was killed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

NEAR_SECONDS = 20.0  # so long after a kill something may still hear of it
EVENT_NEAR_SECONDS = 90.0  # an event that was cut off is run again after 10 s, 20 s and 40 s
CUT_OFF = {
    "TimeoutError",
    "ConnectionResetError",
    "ConnectionRefusedError",
    "OSError",
}  # its code doesn't reach the witness
FUNCTIONS_OWN = {"Function.Reclaimed"}  # an allocation took its room

OWN_ERRORS = {"error": "ValueError", "exit": "Runtime.ExitError"}
# What a caller hears that isn't the function's own: each says whether the function may have run.
RAN_NOT = ("TooManyRequestsException", "ServiceUnavailableException", "ResourceConflictException")
MAY_HAVE_RUN = ("InvocationLostException",)


class Call(NamedTuple):
    """What became of one invocation. ``how``: once (no retry), patient (the SDK's own retries), event. ``heard``: answered, a type
    of error of the function's, what weft says, or broken (the connection, and nobody tried again). Times are of this process."""

    n: int
    function: str
    how: str
    act: str
    heard: str
    began: float
    ended: float


class Kill(NamedTuple):
    what: str
    at: float


def judge_call(call: Call, ran: int, kills: Sequence[Kill]) -> str:
    """What is wrong with an invocation that somebody waited for; "" if nothing is."""
    hit = _kills_near(call.began, call.ended, kills, NEAR_SECONDS)
    told = f"{call} ran {ran} times"
    if ran > 1:
        return f"{told}: nobody asked for that"
    if call.heard == "answered":
        return "" if ran == 1 and call.act == "well" else told
    if call.heard == OWN_ERRORS.get(call.act):
        return "" if ran == 1 else told
    if call.heard in RAN_NOT:
        return f"{told}, and was refused" if ran else ""
    if call.heard in MAY_HAVE_RUN or call.heard in FUNCTIONS_OWN:
        return "" if hit else f"{told}, and nothing was killed"
    if call.heard in CUT_OFF:
        return "" if "agent" in hit else f"{told}, and no agent was killed"
    if call.heard == "Runtime.ExitError":  # its instance was killed under it
        return "" if {"runtime"} & hit else f"{told}, and no runtime was killed"
    if call.heard.startswith("broken"):
        return "" if {"gateway"} & hit and "ReadTimeout" not in call.heard else f"{told}, and no gateway was killed"
    return told


def judge_event(call: Call, ran: int, buried: bool, kills: Sequence[Kill]) -> str:
    """The same of an event, when all is quiet. One that is to fail runs twice (``--retries 1``) and is ``buried`` then."""
    hit = _kills_near(call.began, call.ended, kills, EVENT_NEAR_SECONDS)
    told = f"{call} ran {ran} times{', and is a dead letter' if buried else ''}"
    if call.heard != "accepted":
        broken = call.heard.startswith("broken") and "gateway" in _kills_near(
            call.began, call.ended, kills, NEAR_SECONDS
        )
        return "" if broken or (call.heard in RAN_NOT and ran == 0) else told
    least, fails = (1, False) if call.act == "well" else (2, True)
    if buried and not fails and hit:  # both its runs were cut off
        return ""
    if buried != fails or ran < (least if not hit else 1):
        return told
    return "" if ran <= least or hit else f"{told}, and nothing was killed"


def count_heard(calls: Sequence[Call]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.heard] = counts.get(call.heard, 0) + 1
    return counts


def _kills_near(began: float, ended: float, kills: Sequence[Kill], seconds: float) -> set[str]:
    return {kill.what for kill in kills if began - seconds <= kill.at <= ended + seconds}
