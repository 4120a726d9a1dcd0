"""What the witness answers, for one group. Pure: what it knows, what a site says, and its own CLOCK_BOOTTIME in; what it knows
then, and the answer, out. The caller writes ``VoteRecord`` durably before it sends the answer, where that has changed.

The witness knows no guest, and never acts on its own. It grants a take-over only if
- it has promised nothing to the present primary for a whole promise, also after each start;
- both sites have named the generation that it knows. One that is empty, or was restored, knows the newest only once both have
  spoken.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from weft.failover.promise import Promise, begin_promise, compare_claims, extend_promise, renew_promise
from weft.protocol.failover.claim import Answer, Claim, Generation, Granted, Newer, Refused

SITES = 2


class VoteRecord(msgspec.Struct, frozen=True):
    """Of one group: what survives the witness's process."""

    claim: Claim
    seconds: float  # how long promises last
    confirmed: frozenset[str] = frozenset()  # the sites that have named this claim
    is_taken: bool = (
        True  # the holder has renewed its lease since it was granted: a late repetition of its question gets nothing
    )


class Vote(msgspec.Struct, frozen=True):
    """Of one group: what the witness knows."""

    record: VoteRecord
    until: float  # by its own CLOCK_BOOTTIME: it grants nothing before

    @property
    def promise(self) -> Promise:
        return Promise(self.record.claim, self.record.seconds, self.until)

    @property
    def is_armed(self) -> bool:
        return len(self.record.confirmed) >= SITES


def begin_vote(record: VoteRecord, now: float) -> Vote:
    """Of a witness that has started with this record."""
    return Vote(record, now + record.seconds)


def doubt_vote(vote: Vote) -> Vote:
    """A site has spoken with a witness of another history than this one's: both have to say what they know again."""
    return replace(vote, record=replace(vote.record, confirmed=frozenset()))


def receive_claim(vote: Vote | None, site: str, named: Claim, seconds: float, now: float) -> tuple[Vote, Answer]:
    """A site says which claim it knows. Of the primary this renews its lease."""
    vote = _note_claim(vote, site, named, seconds, now)
    if site != named.holder:
        return vote, compare_claims(vote.record.claim, named) or Refused("notHolder")
    promise, answer = renew_promise(vote.promise, named, seconds, now)
    if named != vote.record.claim:
        return vote, answer
    return Vote(replace(vote.record, seconds=promise.seconds, is_taken=True), promise.until), answer


def receive_question(
    vote: Vote | None, site: str, named: Claim, seconds: float, now: float, fresh_id: str
) -> tuple[Vote, Answer]:
    """A site, which knows the claim ``named``, asks whether it may be primary. ``fresh_id``: random, for the next generation."""
    vote = _note_claim(vote, site, named, seconds, now)
    record = vote.record
    if (refusal := compare_claims(record.claim, named)) is not None:
        if isinstance(refusal, Newer) and record.claim.holder == site and not record.is_taken:
            # The answer to its first question was lost.
            again = extend_promise(vote.promise, seconds, now)
            return Vote(replace(record, seconds=again.seconds), again.until), Granted(record.claim)
        return vote, refusal
    if not vote.is_armed:
        return vote, Refused("unconfirmed")
    if now < vote.until:
        return vote, Refused("promised", vote.until - now)
    claim = Claim(Generation(named.generation.number + 1, fresh_id), site)
    longest = max(seconds, record.seconds)
    return Vote(replace(record, claim=claim, seconds=longest, is_taken=False), now + longest), Granted(claim)


def _note_claim(vote: Vote | None, site: str, named: Claim, seconds: float, now: float) -> Vote:
    """With what the site knows. A claim that is newer than the witness's shows that the witness was restored."""
    if vote is None or named.is_newer_than(vote.record.claim):
        longest = seconds if vote is None else max(seconds, vote.record.seconds)
        begun = begin_promise(named, longest, now)
        until = begun.until if vote is None else max(begun.until, vote.until)
        return Vote(VoteRecord(named, longest, frozenset({site})), until)
    if named == vote.record.claim and site not in vote.record.confirmed:
        return replace(vote, record=replace(vote.record, confirmed=vote.record.confirmed | {site}))
    return vote
