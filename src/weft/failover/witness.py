"""Answer of the witness, for one group. Pure: what it knows, what a site says, and its own CLOCK_BOOTTIME in; what it knows then,
and the answer, out. The caller writes ``VoteRecord`` durably before it sends the answer, where that has changed.

The witness knows no guest, and never acts on its own. It grants a take-over only if
- it has promised nothing to the present primary for a whole promise, also after each start;
- both sites have named the generation that it knows. One that is empty, or was restored, knows the newest only once both have
  spoken;
- the copy was told to take over in no earlier turn than the primary last ended. A store that was restored doesn't know that.

A grant that isn't used is given back by the site that got it, once nothing there can use it any more. It never expires: the witness
can't know whether a site that is silent uses it.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from weft.failover.promise import Promise, begin_promise, compare_claims, extend_promise, renew_promise
from weft.protocol.failover.claim import Claim, ClaimAnswer, ClaimRefused, Generation, Granted, Newer

SITES = 2


class VoteRecord(msgspec.Struct, frozen=True):
    """Record of one group's vote: what survives the witness's process."""

    claim: Claim
    seconds: float  # how long promises last
    confirmed: frozenset[str] = frozenset()  # the sites that have named this claim
    is_taken: bool = (
        True  # the holder has renewed its lease since it was granted: a late repetition of its question gets nothing
    )
    turn: int = 0  # a copy that was told to take over in an earlier one gets no grant


class Vote(msgspec.Struct, frozen=True):
    """Vote of one group: what the witness knows."""

    record: VoteRecord
    until: float  # by its own CLOCK_BOOTTIME: it grants nothing before
    is_heard: bool = False  # by this process, of the holder

    @property
    def promise(self) -> Promise:
        return Promise(self.record.claim, self.record.seconds, self.until)

    @property
    def is_armed(self) -> bool:
        return len(self.record.confirmed) >= SITES


def begin_vote(record: VoteRecord, now: float) -> Vote:
    """Begin the vote of a witness that has started with this record."""
    return Vote(record, now + record.seconds)


def doubt_vote(vote: Vote) -> Vote:
    """A site has spoken with a witness of another history than this one's: both have to say what they know again."""
    return replace(vote, record=replace(vote.record, confirmed=frozenset()))


def receive_claim(
    vote: Vote | None, site: str, named: Claim, seconds: float, now: float, turn: int = 0
) -> tuple[Vote, ClaimAnswer]:
    """A site says which claim it knows. Of the primary this renews its lease. ``turn``: no copy that was told before takes
    over."""
    vote = _note_claim(vote, site, named, seconds, now)
    if site == named.holder and named == vote.record.claim and turn > vote.record.turn:
        vote = replace(vote, record=replace(vote.record, turn=turn))
    if site != named.holder:
        return vote, compare_claims(vote.record.claim, named) or ClaimRefused("notHolder")
    promise, answer = renew_promise(vote.promise, named, seconds, now)
    if named != vote.record.claim:
        return vote, answer
    return Vote(replace(vote.record, seconds=promise.seconds, is_taken=True), promise.until, is_heard=True), answer


def receive_question(
    vote: Vote | None, site: str, named: Claim, seconds: float, now: float, fresh_id: str, turn: int = 0
) -> tuple[Vote, ClaimAnswer]:
    """A site, which knows the claim ``named``, asks whether it may be primary. ``fresh_id``: random, for the next generation;
    ``turn``: in which it was told to."""
    vote = _note_claim(vote, site, named, seconds, now)
    record = vote.record
    if turn < record.turn:
        return vote, compare_claims(record.claim, named) or ClaimRefused("earlierTurn")
    if (refusal := compare_claims(record.claim, named)) is not None:
        if isinstance(refusal, Newer) and record.claim.holder == site and not record.is_taken:
            # The answer to its first question was lost.
            again = extend_promise(vote.promise, seconds, now)
            return Vote(replace(record, seconds=again.seconds), again.until), Granted(record.claim)
        return vote, refusal
    if not vote.is_armed:
        return vote, ClaimRefused("unconfirmed")
    if now < vote.until:
        return vote, ClaimRefused("promised", vote.until - now)
    claim = Claim(Generation(named.generation.number + 1, fresh_id), site)
    longest = max(seconds, record.seconds)
    return Vote(replace(record, claim=claim, seconds=longest, is_taken=False), now + longest), Granted(claim)


def receive_return(
    vote: Vote | None, site: str, named: Claim, granted: str, seconds: float, now: float
) -> tuple[Vote, ClaimAnswer]:
    """A site gives back the generation with the id ``granted``, which followed ``named``: nothing there will use it. From now on
    the witness grants nothing for a whole promise, as after a start."""
    vote = _note_claim(vote, site, named, seconds, now)
    record = vote.record
    unused = record.claim.holder == site and not record.is_taken and record.claim.generation.id == granted
    if not unused or record.claim.generation.number != named.generation.number + 1 or named.holder == site:
        return vote, compare_claims(record.claim, named) or ClaimRefused("notHolder")
    longest = max(seconds, record.seconds)
    former = VoteRecord(named, longest, frozenset({site}), turn=record.turn)
    return Vote(former, max(vote.until, now + longest)), ClaimRefused("returned", longest)


def inspect_claim(vote: Vote | None, named: Claim) -> ClaimAnswer:
    """Inspect the claim of a site whose store was restored: what it names may be old, so it confirms nothing."""
    return (compare_claims(vote.record.claim, named) if vote is not None else None) or ClaimRefused("notHolder")


def _note_claim(vote: Vote | None, site: str, named: Claim, seconds: float, now: float) -> Vote:
    """Note what the site knows. A claim that is newer than the witness's shows that the witness was restored."""
    if vote is None or named.is_newer_than(vote.record.claim):
        longest = seconds if vote is None else max(seconds, vote.record.seconds)
        begun = begin_promise(named, longest, now)
        until = begun.until if vote is None else max(begun.until, vote.until)
        turn = 0 if vote is None else vote.record.turn
        return Vote(VoteRecord(named, longest, frozenset({site}), turn=turn), until)
    if named == vote.record.claim and site not in vote.record.confirmed:
        return replace(vote, record=replace(vote.record, confirmed=vote.record.confirmed | {site}))
    return vote
