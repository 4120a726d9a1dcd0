"""Answers sites: finds out which site asks, has the rule decide, writes what has changed, and only then answers.

A group belongs to the two sites that name each other, so no third site can say anything about it. Everything that a site can make
the witness hold is bounded.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from weft.failover.witness import (
    Vote,
    begin_vote,
    doubt_vote,
    inspect_claim,
    receive_claim,
    receive_question,
    receive_return,
)
from weft.objects.errors import Forbidden, InvalidInput, NotAuthenticated
from weft.protocol.failover.claim import MOST_GENERATION, ClaimAnswer
from weft.protocol.failover.witness import MOST_REQUEST_BYTES, WitnessAnswer, WitnessRequest
from weft.witness.votes import read_votes, write_votes

MOST_GROUPS = 1000  # of one site
FORGET_SECONDS = 86_400.0
MOST_SECRET = 200  # characters


class Counts(NamedTuple):
    sites: int
    groups: int
    armed: int  # groups of which both sites have named the same claim


class Witness:
    """``sites``: the SHA-256 (hex) of each site's secret, by its name. ``read_time``: seconds of this machine's CLOCK_BOOTTIME.
    One process at a time has the file at ``path``; groups of other sites in it are forgotten. Raises Unavailable if that can't be
    read."""

    def __init__(self, path: Path, sites: Mapping[str, str], read_time: Callable[[], float]) -> None:
        self._path, self._sites, self._read_time = path, dict(sites), read_time
        votes, now = read_votes(path), read_time()
        self.epoch = votes.epoch
        self._votes = {
            key: begin_vote(record, now)
            for key, record in votes.records.items()
            if all(site in sites for site in list_sites(key))
        }
        # When each of its sites last named it. A group counts for the sites that have named it, so none has to answer for others'.
        self._heard = {
            key: dict.fromkeys(vote.record.confirmed or list_sites(key), now) for key, vote in self._votes.items()
        }

    def answer(self, secret: str, body: bytes) -> WitnessAnswer:
        """Raises NotAuthenticated, InvalidInput, Forbidden for one group too many, Unavailable if nothing can be written: then
        nothing is promised."""
        site = self.find_site(secret)
        request = read_request(body)
        self._check_sites(site, request)
        key = name_vote(site, request.peer, request.group)
        vote = self._votes.get(key)
        now = self._read_time()
        if request.what == "inspect":
            return self._answer(inspect_claim(vote, request.claim), vote, now)
        if vote is None:
            self._make_space(site)
        after, answer = self._decide(vote, site, request, now)
        if vote is None or after.record != vote.record:
            records = {other: one.record for other, one in self._votes.items()}
            write_votes(self._path, self.epoch, {**records, key: after.record})
        self._votes[key] = after
        self._heard.setdefault(key, {})[site] = now
        return self._answer(answer, after, now)

    def _answer(self, answer: ClaimAnswer, vote: Vote | None, now: float) -> WitnessAnswer:
        if vote is None:
            return WitnessAnswer(answer=answer, epoch=self.epoch, is_armed=False)
        return WitnessAnswer(
            answer=answer,
            epoch=self.epoch,
            is_armed=vote.is_armed,
            held_seconds=max(0.0, vote.until - now),
            turn=vote.record.turn,
            is_heard=vote.is_heard,
            is_used=vote.record.is_taken,
        )

    def _make_space(self, site: str) -> None:
        """Make space for one group more. The group that neither of its sites has named for longest is forgotten, if that is a day:
        this is as safe as losing the file. Raises Forbidden."""
        own = [key for key, heard in self._heard.items() if site in heard]
        if len(own) < MOST_GROUPS:
            return
        oldest = min(own, key=lambda key: max(self._heard[key].values()))
        if self._read_time() - max(self._heard[oldest].values()) < FORGET_SECONDS:
            raise Forbidden(f"{site} has {MOST_GROUPS} groups here, which is the most", reason="tooManyObjects")
        del self._votes[oldest], self._heard[oldest]

    def put_sites(self, sites: Mapping[str, str]) -> None:
        """Keep these sites from now on. Groups of sites that are no more are forgotten: if such a site comes back, the witness
        knows nothing of it, as one that has lost its file. Raises Unavailable if that can't be written; it counts all the same,
        since who starts forgets them too."""
        left = {key: vote for key, vote in self._votes.items() if all(site in sites for site in list_sites(key))}
        has_fewer = len(left) < len(self._votes)
        self._sites, self._votes = dict(sites), left
        self._heard = {key: self._heard[key] for key in left}
        if has_fewer:
            write_votes(self._path, self.epoch, {key: vote.record for key, vote in left.items()})

    def count(self) -> Counts:
        return Counts(len(self._sites), len(self._votes), sum(vote.is_armed for vote in list(self._votes.values())))

    def _decide(self, vote: Vote | None, site: str, request: WitnessRequest, now: float) -> tuple[Vote, ClaimAnswer]:
        if vote is not None and request.epoch not in ("", self.epoch):
            vote = doubt_vote(vote)
        claim, seconds, turn = request.claim, request.seconds, request.turn
        if request.what == "claim":
            return receive_claim(vote, site, claim, seconds, now, turn)
        if request.what == "return":
            return receive_return(vote, site, claim, request.returned, seconds, now)
        return receive_question(vote, site, claim, seconds, now, secrets.token_hex(16), turn)

    def find_site(self, secret: str) -> str:
        """The site that has this secret. Raises NotAuthenticated."""
        digest = hashlib.sha256(secret[:MOST_SECRET].encode()).hexdigest()
        found = [name for name, known in self._sites.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise NotAuthenticated(
                "the witness knows no site with this secret",
                hint="at the witness: weft witness add-site NAME prints one",
            )
        return found[0]

    def _check_sites(self, site: str, request: WitnessRequest) -> None:
        if request.peer == site or request.peer not in self._sites:
            raise InvalidInput(
                f"peer: {request.peer} must be another site, and one that the witness knows",
                field="peer",
                hint="at the witness: weft witness add-site NAME",
            )
        if request.claim.holder not in (site, request.peer):
            raise InvalidInput("claim.holder is neither of the group's sites", field="claim.holder")
        if (
            request.claim.generation.number >= MOST_GENERATION
        ):  # the next one could be read by nobody, this witness included
            raise InvalidInput(
                f"claim.generation.number must be less than {MOST_GENERATION}", field="claim.generation.number"
            )


def name_vote(site: str, peer: str, group: str) -> str:
    """The key of a group: names have no slash."""
    return "/".join((*sorted((site, peer)), group))


def list_sites(key: str) -> list[str]:
    return key.split("/")[:2]


def read_request(body: bytes) -> WitnessRequest:
    """Raises InvalidInput, without what came."""
    if len(body) > MOST_REQUEST_BYTES:
        raise InvalidInput(f"the request is longer than {MOST_REQUEST_BYTES} bytes", field="body")
    try:
        return msgspec.json.decode(body, type=WitnessRequest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"the request is not one of a site: {str(problem)[:200]}",
            field="body",
            hint="use the same release of weft at both sites and at the witness",
        ) from None
