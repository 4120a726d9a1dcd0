"""The HTTP API for gateways of other servers: they have copies of their events kept here, ask what was taken over of theirs, and
for the dead letters and the records of functions that lie here."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from weft.gateway.event_copies.all_dead_letters import AllDeadLetters, LetterQuestion
from weft.gateway.event_copies.held_events import AT_ONCE
from weft.gateway.event_copies.kept_copies import CopyBatch, EventKind, KeptCopies
from weft.gateway.event_copies.other_gateways import (
    FIND_TAKEN,
    FORGET_TAKEN,
    KEEP,
    LETTERS,
    READ,
    TICKET,
    OtherGateways,
)
from weft.gateway.function.record.all_gateways import LINES, METRICS, FunctionRecords, LinesQuery
from weft.gateway.lambda_api.http import LambdaRequest, read_packed
from weft.objects.errors import Forbidden, InvalidInput
from weft.serving.answer import Answer

PATHS = (KEEP, FIND_TAKEN, FORGET_TAKEN, READ, LETTERS, METRICS, LINES)
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class OtherGatewayApi:
    def __init__(
        self, others: OtherGateways, copies: KeptCopies, letters: AllDeadLetters, records: FunctionRecords
    ) -> None:
        self._others, self._copies, self._letters, self._records = others, copies, letters, records

    async def answer(self, request: LambdaRequest) -> Answer:
        """Raises WeftError."""
        asker = await self._others.identify(request.header(TICKET))
        if request.method != "POST":
            raise InvalidInput(f"{request.method} is not allowed at this path", reason="methodNotAllowed", hint="POST")
        return Answer(200, msgspec.msgpack.encode(await self._answer(request, asker)), ())

    async def _answer(self, request: LambdaRequest, asker: str) -> Any:
        if request.path == KEEP:
            batch = read_packed(request, CopyBatch)
            if batch.owner != asker:
                raise Forbidden(f"the ticket is one of gateway {asker}, not of {batch.owner}")
            return await self._copies.keep(batch)
        if request.path == FIND_TAKEN:
            return await self._copies.find_taken(asker, read_packed(request, list[str])[:AT_ONCE])
        if request.path == FORGET_TAKEN:
            return await self._copies.forget_taken(asker)
        if request.path == READ:
            return await self._copies.read(*read_packed(request, tuple[EventKind, int]))
        if request.path == LETTERS:
            return await self._letters.answer(read_packed(request, LetterQuestion))
        if request.path == METRICS:
            return self._records.read_own_metrics(_check(read_packed(request, str)))
        asked = read_packed(request, LinesQuery)
        _check(asked.uid)
        return await self._records.read_own_lines(asked)


def _check(uid: str) -> str:
    """A function's uid: it names a file. Raises InvalidInput."""
    if not _UID.fullmatch(uid):
        raise InvalidInput(f"{uid[:40]!r} is not the uid of a function", field="uid", hint="it is a UUID")
    return uid
