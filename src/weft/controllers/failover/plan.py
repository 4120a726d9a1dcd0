"""Work out the condition Witnessed from the witness's answer. Pure."""

from __future__ import annotations

from weft.controllers.failover.facts import PROMISE_SECONDS, Group
from weft.kinds.fields.cluster.link import (
    CONFIRMED,
    CONFLICT,
    GRANTED,
    NO_WITNESS,
    ONLY_HERE,
    PRIMARY_SILENT,
    PRIMARY_SPEAKS,
    REFUSED,
    SUPERSEDED,
    UNREACHABLE,
)
from weft.objects.envelope import Condition
from weft.objects.errors import NotAuthenticated, Unavailable, WeftError
from weft.objects.quantity import format_duration
from weft.protocol.failover.claim import Conflict, Granted, Newer
from weft.protocol.failover.witness import WitnessAnswer


def plan_condition(group: Group, answered: WitnessAnswer | WeftError, cluster: str, failed: str = "") -> Condition:
    """``cluster``: the other one's name here. ``failed``: why what the witness granted couldn't be done. Whatever the witness says
    is put into words of this cluster's."""
    if isinstance(answered, WeftError):
        return _make("Unknown", *_explain(answered))
    match answered.answer:
        case Newer(claim) if claim.is_newer_than(group.claim):
            known = f"the witness knows generation {claim.generation.number}"
            if not answered.is_used and claim.holder != group.claim.holder:
                what = f"{known}, which it granted and nobody has used yet"
                who = "this cluster gives it back" if group.is_standby else f"{cluster} takes over, or gives it back"
                return _make("False", GRANTED, f"{what}: {who}")
            if claim.holder == group.claim.holder:  # a VM isn't left for that
                who = cluster if group.is_standby else "this cluster"
                return _make("False", CONFLICT, f"{known}, of {who} itself: it was restored, or its token is stolen")
            if group.is_standby:
                return _make(
                    "False", SUPERSEDED, f"{known}: this cluster has promoted its copy, and was restored since"
                )
            return _make("False", SUPERSEDED, f"{known}: {cluster} has promoted its copy")
        case Conflict(claim) if claim.generation.number == group.claim.generation.number:
            what = f"both clusters name themselves primary in generation {claim.generation.number}: people decide which counts"
            return _make("False", CONFLICT, what)
        case Granted() if group.is_standby:
            what = f"the witness got no word from {cluster}, and granted that this cluster takes over"
            return _make("True", PRIMARY_SILENT, f"{what}, which it can't: {failed}" if failed else what)
    if not answered.is_armed and not group.is_standby and not group.is_source:
        # The other cluster has left the VM, and names no primary any more.
        return _make("True", CONFIRMED, "the witness names this cluster as primary, since its copy was promoted")
    if not answered.is_armed:
        what = f"{cluster} hasn't named the same primary to the witness: it may have no witness, or not reach it"
        return _make("False", ONLY_HERE, what)
    if not group.is_standby:
        return _make("True", CONFIRMED, "both clusters and the witness name this cluster as primary")
    if answered.held_seconds > 0 and not answered.is_heard:
        what = f"the witness has started, and may have promised something to {cluster} before, which it hasn't heard of since"
        return _make("True", PRIMARY_SPEAKS, f"{what}: this ends within {format_duration(PROMISE_SECONDS)}")
    if answered.held_seconds > 0:
        return _make("True", PRIMARY_SPEAKS, f"the witness gets word from {cluster}, which is primary")
    since = format_duration(PROMISE_SECONDS)
    return _make("True", PRIMARY_SILENT, f"the witness got no word from {cluster}, which is primary, for {since}")


def plan_unwitnessed() -> Condition:
    return _make("Unknown", NO_WITNESS, "the link has no witness")


def _explain(problem: WeftError) -> tuple[str, str]:
    if isinstance(problem, NotAuthenticated):
        return REFUSED, f"{problem.message}: weft cluster witness gives it another token"
    if isinstance(problem, Unavailable):
        return UNREACHABLE, f"the witness can't be asked: {problem.message}"
    return REFUSED, problem.message


def _make(status: str, reason: str, message: str) -> Condition:
    return Condition("Witnessed", status, reason, message)  # type: ignore[arg-type]
