"""The HTTP API of gateways of other servers: they have copies of their events kept here, ask what was taken over of theirs, and
for the dead letters that lie here."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.event_copies.all_dead_letters import AllDeadLetters, LetterQuestion
from weft.gateway.event_copies.held_events import AT_ONCE
from weft.gateway.event_copies.kept_copies import CopyBatch, EventKind, KeptCopies
from weft.gateway.event_copies.other_gateways import FIND_TAKEN, FORGET_TAKEN, KEEP, LETTERS, READ, TICKET
from weft.gateway.lambda_api.http import LambdaRequest, read_packed
from weft.objects.errors import Forbidden, InvalidInput
from weft.serving.answer import Answer
from weft.trust.tickets import check_gateway_ticket

PATHS = (KEEP, FIND_TAKEN, FORGET_TAKEN, READ, LETTERS)


class EventCopyApi:
    """``own`` is this gateway's name."""

    def __init__(self, copies: KeptCopies, letters: AllDeadLetters, own: str, ticket_key: bytes, clock: Clock) -> None:
        self._copies, self._letters, self._own, self._key, self._clock = copies, letters, own, ticket_key, clock

    async def answer(self, request: LambdaRequest) -> Answer:
        """Raises WeftError."""
        owner = check_gateway_ticket(self._key, request.header(TICKET), self._own, self._clock.now())
        if request.method != "POST":
            raise InvalidInput(f"{request.method} is not allowed at this path", reason="methodNotAllowed", hint="POST")
        answer: Any = None
        if request.path == KEEP:
            batch = read_packed(request, CopyBatch)
            if batch.owner != owner:
                raise Forbidden(f"the ticket is one of gateway {owner}, not of {batch.owner}")
            answer = await self._copies.keep(batch)
        elif request.path == FIND_TAKEN:
            answer = await self._copies.find_taken(owner, read_packed(request, list[str])[:AT_ONCE])
        elif request.path == LETTERS:
            answer = await self._letters.answer(read_packed(request, LetterQuestion))
        elif request.path == READ:
            answer = await self._copies.read(*read_packed(request, tuple[EventKind, int]))
        else:
            await self._copies.forget_taken(owner)
        return Answer(200, msgspec.msgpack.encode(answer), ())
