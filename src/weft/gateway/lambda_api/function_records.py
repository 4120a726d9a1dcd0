"""The HTTP API of gateways of other servers that ask for this one's records of a function."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.event_copies.other_gateways import TICKET
from weft.gateway.function.record.all_gateways import LINES, METRICS, FunctionRecords, LinesQuery
from weft.gateway.lambda_api.http import LambdaRequest, read_packed
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.trust.tickets import check_gateway_ticket

PATHS = (METRICS, LINES)
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class FunctionRecordApi:
    """``own`` is this gateway's name."""

    def __init__(self, records: FunctionRecords, own: str, ticket_key: bytes, clock: Clock) -> None:
        self._records, self._own, self._key, self._clock = records, own, ticket_key, clock

    async def answer(self, request: LambdaRequest) -> Answer:
        """Raises WeftError."""
        check_gateway_ticket(self._key, request.header(TICKET), self._own, self._clock.now())
        if request.method != "POST":
            raise InvalidInput(f"{request.method} is not allowed at this path", reason="methodNotAllowed", hint="POST")
        answer: Any
        if request.path == METRICS:
            answer = self._records.read_own_metrics(_check(read_packed(request, str)))
        else:
            asked = read_packed(request, LinesQuery)
            _check(asked.uid)
            answer = await self._records.read_own_lines(asked)
        return Answer(200, msgspec.msgpack.encode(answer), ())


def _check(uid: str) -> str:
    """A function's uid: it names a file. Raises InvalidInput."""
    if not _UID.fullmatch(uid):
        raise InvalidInput(f"{uid[:40]!r} is not the uid of a function", field="uid", hint="it is a UUID")
    return uid
