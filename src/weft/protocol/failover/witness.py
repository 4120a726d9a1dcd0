"""What a site sends to the witness, and what that answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.protocol.failover.claim import Answer, Claim, Name

PATH = "/v1/witness"  # POST, with the site's secret as a bearer token
MOST_REQUEST_BYTES = 4096
MOST_PROMISE_SECONDS = 3600.0
Epoch = Annotated[str, msgspec.Meta(max_length=64)]


class WitnessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a site sends to the witness; which site it is, its secret shows."""

    peer: Name  # the group's other site
    group: Name
    what: Literal["claim", "question"]
    claim: Claim  # the newest that the site knows
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_PROMISE_SECONDS)]  # how long promises last
    epoch: Epoch = ""  # of the witness, as the site knows it; "": it has never answered


class WitnessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    answer: Answer
    epoch: Epoch  # the history of the witness's file
    is_armed: bool  # a take-over could be granted once nothing is promised
    held_seconds: float = 0.0  # for which the witness still helps nobody but the holder
