"""Requests of a site to the witness, and the answers."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.protocol.failover.claim import Claim, ClaimAnswer, Name

PATH = "/v1/witness"  # POST, with the site's secret as a bearer token
MOST_REQUEST_BYTES = 4096
MOST_PROMISE_SECONDS = 3600.0
Epoch = Annotated[str, msgspec.Meta(max_length=64)]
MOST_TURN = 1 << 40
Turn = Annotated[int, msgspec.Meta(ge=0, le=MOST_TURN)]


class WitnessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of a site to the witness; which site it is, its secret shows."""

    peer: Name  # the group's other site
    group: Name
    # return: a grant that wasn't used, and never will be, is given back; inspect: nothing is confirmed, since the site's store was
    # restored
    what: Literal["claim", "question", "return", "inspect"]
    claim: Claim  # the newest that the site knows
    seconds: Annotated[float, msgspec.Meta(gt=0, le=MOST_PROMISE_SECONDS)]  # how long promises last
    epoch: Epoch = ""  # of the witness, as the site knows it; "": it has never answered
    # Of the primary: no copy that was told to take over in an earlier turn than this one may any more; 0: nothing new. Of a
    # question: in which turn the site was told to.
    turn: Turn = 0
    returned: Annotated[str, msgspec.Meta(max_length=64)] = ""  # the id of the generation that is given back


class WitnessAnswer(msgspec.Struct, frozen=True, kw_only=True):
    answer: ClaimAnswer
    epoch: Epoch  # the history of the witness's file
    is_armed: bool  # a take-over could be granted once nothing is promised
    held_seconds: float = 0.0  # for which the witness still helps nobody but the holder
    turn: Turn = 0  # which must have been reached by who asks for a grant: on disk at the witness
    is_heard: bool = True  # False: the witness has started, and hasn't heard of the holder since
    is_used: bool = True  # False: the newest claim was granted, and its holder hasn't named it yet
