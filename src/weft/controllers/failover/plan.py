"""What the condition Witnessed says, with the witness's answer. Pure."""

from __future__ import annotations

from weft.controllers.failover.facts import PROMISE_SECONDS, Group
from weft.kinds.fields.cluster.witness import (
    CONFIRMED,
    CONFLICT,
    NO_WITNESS,
    ONLY_HERE,
    PRIMARY_SILENT,
    PRIMARY_SPEAKS,
    REFUSED,
    SUPERSEDED,
    UNREACHABLE,
    WITNESSED,
)
from weft.objects.envelope import Condition
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError
from weft.objects.quantity import format_duration
from weft.protocol.failover.claim import Conflict, Newer
from weft.protocol.failover.witness import WitnessAnswer


def plan_condition(group: Group, heard: WitnessAnswer | WeftError, cluster: str) -> Condition:
    """``cluster``: the other one's name here. Whatever the witness says is put into words of this cluster's."""
    if isinstance(heard, WeftError):
        return _say("Unknown", *_explain(heard))
    match heard.answer:
        case Newer(claim) if claim.is_newer_than(group.claim):
            what = f"the witness knows generation {claim.generation.number}: {cluster} has promoted its copy"
            return _say("False", SUPERSEDED, what)
        case Conflict(claim) if claim.generation.number == group.claim.generation.number:
            what = f"both clusters name themselves primary in generation {claim.generation.number}: people decide which counts"
            return _say("False", CONFLICT, what)
    if not heard.is_armed:
        what = f"{cluster} hasn't named the same primary to the witness: it may have no witness, or not reach it"
        return _say("False", ONLY_HERE, what)
    if not group.is_standby:
        return _say("True", CONFIRMED, "both clusters and the witness name this cluster as primary")
    if heard.held_seconds > 0:
        return _say("True", PRIMARY_SPEAKS, f"the witness hears from {cluster}, which is primary")
    since = format_duration(PROMISE_SECONDS)
    return _say("True", PRIMARY_SILENT, f"the witness has heard nothing from {cluster}, which is primary, for {since}")


def plan_unwitnessed() -> Condition:
    return _say("Unknown", NO_WITNESS, "the link has no witness")


def _explain(problem: WeftError) -> tuple[str, str]:
    if isinstance(problem, NotAuthenticated):
        return REFUSED, f"{problem.message}: weft cluster witness gives it another token"
    if isinstance(problem, Unavailable):
        return UNREACHABLE, f"the witness can't be asked: {problem.message}"
    return REFUSED, problem.message


def _say(status: str, reason: str, message: str) -> Condition:
    return Condition(WITNESSED, status, reason, message)  # type: ignore[arg-type]
