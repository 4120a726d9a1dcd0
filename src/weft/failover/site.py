"""When a site may run the guests of a group. Pure: events and the site's own CLOCK_BOOTTIME in, what to send out.

The rule, with the voters A, B (the two sites) and W (the witness): a primary's lease is its own and any one other's promise; a
take-over needs the site's own promise to have run out and W's grant. So losing W alone, or the link alone, stops nobody. Only a
site that is cut off from both stops its guests, and asks for the next generation before it runs them again, like anyone.

The caller writes ``Site.promise.claim`` durably, where that has changed, before it sends or starts anything. The sites'
names are those that the witness knows them by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.failover.promise import Promise, begin_promise, renew_promise
from weft.failover.timing import Timing
from weft.protocol.failover.claim import Answer, Claim, Conflict, Granted, Newer, Promised, Refused

Voter = Literal["witness", "peer"]


class Send(msgspec.Struct, frozen=True):
    """``claim``: say which claim this site knows, which of a primary renews its lease; ``question``: ask to become primary."""

    to: Voter
    what: Literal["claim", "question"]
    claim: Claim


class Site(msgspec.Struct, frozen=True):
    name: str
    timing: Timing
    promise: Promise  # the claim that it knows, and what it has promised to the peer
    valid_until: float  # its guests run before this, if it is the holder
    renews_until: float  # before this it renews its lease; later it asks, like anyone
    given_at: float = float("-inf")  # when it last promised something to the peer
    asks_until: float = float("-inf")  # before this it may be granted what it asked for, so it promises nothing
    next_at: float = 0.0  # when it next sends
    problem: str = ""  # what people have to decide

    @property
    def claim(self) -> Claim:
        return self.promise.claim

    @property
    def is_holder(self) -> bool:
        return self.claim.holder == self.name

    def may_run(self, now: float) -> bool:
        return self.is_holder and now < self.valid_until


def begin_site(name: str, claim: Claim, timing: Timing, now: float) -> Site:
    """Of a server that has started. It doesn't know what it has promised, nor how long its lease was: it promises for a whole
    promise, and its guests wait for a voter's word."""
    promise = begin_promise(claim, timing.promise, now)
    return Site(name, timing, promise, now, now + timing.lease, next_at=now)


def pass_time(site: Site, now: float) -> tuple[Site, Sequence[Send]]:
    """What it sends now."""
    if now < site.next_at:
        return site, ()
    site = replace(site, next_at=now + site.timing.renew)
    if site.is_holder and now < site.renews_until:
        return site, (Send("witness", "claim", site.claim), Send("peer", "claim", site.claim))
    if not site.is_holder and now < site.promise.until:
        return site, (Send("witness", "claim", site.claim),)
    return replace(site, asks_until=now + site.timing.lease), (Send("witness", "question", site.claim),)


def receive_answer(site: Site, sent: float, named: Claim, answer: Answer, now: float) -> Site:
    """The answer to what this site sent at ``sent``, by its own clock as it was before it sent, with the claim ``named``."""
    match answer:
        case Promised(claim) if claim == named == site.claim and site.is_holder and now < site.renews_until:
            return _extend(site, sent, now)
        case Granted(claim) if site.asks_until > now:
            return _take(site, sent, named, claim, now)
        case Newer(claim) if claim.is_newer_than(site.claim):
            if claim.holder != site.name:
                return _adopt(site, claim, now)
            return replace(site, asks_until=float("-inf"), renews_until=min(site.renews_until, site.valid_until))
        case Conflict(claim) if claim.generation.number == site.claim.generation.number and claim != site.claim:
            return replace(site, problem=_describe(site.claim, claim), asks_until=float("-inf"))
        case Refused():
            return replace(site, asks_until=float("-inf"))
    return site


def receive_renewal(site: Site, named: Claim, now: float) -> tuple[Site, Answer]:
    """The peer, as primary, renews its lease here."""
    if named.holder == site.name or (not named.is_newer_than(site.claim) and now < site.asks_until):
        return site, Refused("asking")
    if named.is_newer_than(site.claim):
        site = _adopt(site, named, now)
    promise, answer = renew_promise(site.promise, named, site.timing.promise, now)
    if not isinstance(answer, Promised):
        return site, answer
    return replace(site, promise=promise, given_at=now), answer


def _extend(site: Site, sent: float, now: float) -> Site:
    until = sent + site.timing.lease
    if until <= now:
        return site  # it came too late
    return replace(site, valid_until=max(site.valid_until, until), renews_until=max(site.renews_until, until))


def _take(site: Site, sent: float, named: Claim, granted: Claim, now: float) -> Site:
    """A grant counts only if nothing was promised to the peer since the question. Otherwise the question is asked again later, and
    gets the same grant."""
    until = sent + site.timing.lease
    fits = granted.holder == site.name and named == site.claim and granted.is_newer_than(site.claim)
    if not fits or site.given_at >= sent or until <= now:
        return replace(site, asks_until=float("-inf"))
    promise = begin_promise(granted, site.timing.promise, now)
    return replace(
        site, promise=promise, valid_until=until, renews_until=until, asks_until=float("-inf"), next_at=now, problem=""
    )


def _adopt(site: Site, claim: Claim, now: float) -> Site:
    """Another is primary in a newer generation: the guests here end, and this site votes."""
    promise = begin_promise(claim, site.timing.promise, now)
    return replace(
        site, promise=promise, valid_until=now, renews_until=now, asks_until=float("-inf"), next_at=now, problem=""
    )


def _describe(known: Claim, other: Claim) -> str:
    number = known.generation.number
    return (
        f"{known.holder} and {other.holder} are both primary in generation {number}: people decide which of both counts"
    )
