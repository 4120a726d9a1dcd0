"""When the cluster that has the replica may take over. Pure: the replica's own record and this process's CLOCK_BOOTTIME in.

The primary renews its hold here by counting up ``renewals`` of the replica, in a commit. Who asks the witness knows how long that
number has stood still, by its own clock alone; a process that starts knows nothing, and waits for a whole promise again. The
take-over is a commit, too, and holds only if the number is the one that it was before the witness was asked. So a renewal and a
take-over can't both succeed, whatever is slow, repeated or killed in between.
"""

from __future__ import annotations

import msgspec

from weft.protocol.failover.claim import Claim, ClaimAnswer, ClaimRefused, Granted, Newer
from weft.protocol.failover.witness import WitnessAnswer


class Silence(msgspec.Struct, frozen=True):
    """``renewals`` has stood still; before ``until`` nothing may be asked."""

    renewals: int
    until: float


class WitnessQuestion(msgspec.Struct, frozen=True):
    """Question to the witness. An answer to an earlier one, which was given up, doesn't count."""

    renewals: int
    named: Claim  # which the replica is a copy of
    holder: str  # the name of this cluster at the witness


def follow_renewals(known: Silence | None, renewals: int, promise: float, now: float) -> Silence:
    """``known``: what this process knew before; None: it has just started, or has just got this replica."""
    if known is not None and known.renewals == renewals:
        return known
    return Silence(renewals, now + promise)


def may_ask(silence: Silence, now: float) -> bool:
    return now >= silence.until


def find_taken(asked: WitnessQuestion, renewals: int, answer: ClaimAnswer, returned: str) -> Claim | None:
    """Claim by which this cluster becomes primary, if the replica still has these ``renewals`` in the same commit; None: it
    doesn't, and asks again later. The witness repeats a grant that was not used. ``returned``: of the generation that is being
    given back, which is used no more."""
    if not isinstance(answer, Granted) or renewals != asked.renewals or answer.claim.generation.id == returned:
        return None
    claim = answer.claim
    return claim if claim.holder == asked.holder and claim.is_newer_than(asked.named) else None


def was_not_promoted(answered: WitnessAnswer) -> bool:
    """Whether the witness shows a standby whose store was restored that it has not been promoted since: both clusters have
    named its source to it, in this very generation."""
    return answered.is_armed and isinstance(answered.answer, ClaimRefused) and answered.answer.reason == "notHolder"


def find_unused(site: str, answered: WitnessAnswer) -> str:
    """The id of a generation that the witness granted to this cluster, ``site``, which is a standby all the same: its source came
    back before it took over, or it couldn't. While the grant stands the witness helps neither. "": there is none.

    First a commit notes the id in the replica, and counts as a renewal, so that no decision from before comes after it; only then
    the witness is told."""
    claim = answered.answer.claim if isinstance(answered.answer, Newer | Granted) else None
    return claim.generation.id if claim is not None and claim.holder == site and not answered.is_used else ""
