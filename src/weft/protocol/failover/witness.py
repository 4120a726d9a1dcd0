"""What a site sends to the witness, and what that answers."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

import msgspec

from weft.protocol.failover.claim import Answer, Claim, Name

PATH = "/v1/witness"  # POST, with the site's secret as a bearer token
MOST_REQUEST_BYTES = 4096
MOST_PROMISE_SECONDS = 3600.0


class WitnessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a site sends to the witness; which site it is, its secret shows."""

    peer: Name  # the group's other site
    group: Name
    what: Literal["claim", "question"]
    claim: Claim  # the newest that the site knows
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_PROMISE_SECONDS)]  # how long promises last
    epoch: Annotated[str, msgspec.Meta(max_length=64)] = (
        ""  # of the witness, as the site knows it; "": it has never answered
    )


class WitnessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    answer: Answer
    epoch: str  # the history of the witness's file
    is_armed: bool  # a take-over could be granted once nothing is promised


class WitnessToken(NamedTuple):
    """What a cluster needs to ask a witness: its own name there, its secret, and the SHA-256 of the witness's CA."""

    site: str
    secret: str
    ca_sha256: str

    def __repr__(self) -> str:
        return f"WitnessToken({self.site!r}, …)"


_TOKEN = re.compile(r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)\.([0-9a-f]{64})\.([0-9a-f]{64})")


def write_witness_token(site: str, secret: str, ca_sha256: str) -> str:
    """The text that people carry from the witness to a cluster."""
    return f"{site}.{secret}.{ca_sha256}"


def read_witness_token(text: str) -> WitnessToken | None:
    """None for any other text."""
    match = _TOKEN.fullmatch(text.strip())
    return None if match is None else WitnessToken(*match.groups())
