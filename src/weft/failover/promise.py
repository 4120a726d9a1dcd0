"""Promise of a voter to a primary. Pure. Both the witness and the site that isn't primary are voters."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from weft.protocol.failover.claim import Claim, ClaimAnswer, Conflict, Newer, Promised


class Promise(msgspec.Struct, frozen=True):
    """The newest claim that the voter knows; before ``until`` (seconds of its own CLOCK_BOOTTIME) it helps nobody else."""

    claim: Claim
    seconds: float  # how long a promise lasts
    until: float


def begin_promise(claim: Claim, seconds: float, now: float) -> Promise:
    """Begin the promise of a voter that has just started, or has just heard of the claim: it may have promised something that it
    doesn't know of any more, so it promises it again."""
    return Promise(claim, seconds, now + seconds)


def extend_promise(promise: Promise, seconds: float, now: float) -> Promise:
    """A promise is never shortened: a shorter length counts once what was promised before it is over, also across a start."""
    if promise.until > now + seconds:
        return replace(promise, seconds=max(promise.seconds, seconds))
    return replace(promise, seconds=seconds, until=now + seconds)


def compare_claims(known: Claim, named: Claim) -> ClaimAnswer | None:
    """The answer to a claim that isn't the newest; None if it is the known one, or newer."""
    if known.is_newer_than(named):
        return Newer(known)
    if named.is_newer_than(known) or named == known:
        return None
    return Conflict(known)


def renew_promise(promise: Promise, named: Claim, seconds: float, now: float) -> tuple[Promise, ClaimAnswer]:
    """The answer to a primary that renews its lease. A claim that is newer than what the voter knows is taken over: only the
    witness's grant, or people, make one."""
    if (refusal := compare_claims(promise.claim, named)) is not None:
        return promise, refusal
    if named != promise.claim:
        return begin_promise(named, max(seconds, promise.seconds), now), Promised(named)
    return extend_promise(promise, seconds, now), Promised(named)
