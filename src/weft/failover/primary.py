"""Confirm a cluster as primary. Pure.

A primary's hold is its own word and any one other's promise, of the witness or of the cluster that has the replica: so the loss of
the witness alone, or of the line alone, ends no guest. A promise counts from stamps that nodes had sent before it was asked for.
"""

from __future__ import annotations

from weft.protocol.failover.claim import Claim, Promised
from weft.protocol.failover.witness import WitnessAnswer


def is_confirmed(claim: Claim, answered: WitnessAnswer) -> bool:
    """Whether the witness promises to help nobody else. A witness that lost its file promises, too, but doesn't know what it
    granted before: its word counts once both clusters have named the same claim to it since, and by then neither waits for an
    older answer."""
    return answered.is_armed and isinstance(answered.answer, Promised) and answered.answer.claim == claim


def is_retired(claim: Claim, answered: WitnessAnswer, turn: int) -> bool:
    """Whether nothing is granted any more to a copy that was told to take over before ``turn``, and nothing has been: the
    witness has that on disk, and still names this cluster. So its word does for that of the other cluster. A witness that
    knows a later turn shows that this store is older than what the copy was told: that isn't enough."""
    return turn > 0 and answered.turn == turn and is_confirmed(claim, answered)
