"""The HTTP API of dead letters: list, run again, delete."""

from __future__ import annotations

import base64
import re
from typing import Any, Protocol
from urllib.parse import parse_qsl

from weft.gateway.function_events.queue import Event
from weft.gateway.lambda_api.answers import answer_json
from weft.gateway.lambda_api.http import LambdaRequest
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

DEAD_LETTERS = re.compile(
    r"/v1/projects/(?P<project>[a-z0-9-]{1,63})/functions/(?P<name>[a-z0-9-]{1,63})/dead-letters(?::(?P<verb>redrive|purge))?"
)
MOST_LISTED = 100


class DeadLetterStore(Protocol):
    """The part of the deliveries that is needed here."""

    async def dead(self, project: str, name: str, most: int, after: str = "") -> list[Event]: ...

    async def redrive(self, project: str, name: str) -> int: ...

    async def purge(self, project: str, name: str) -> int: ...


class DeadLetterApi:
    def __init__(self, letters: DeadLetterStore) -> None:
        self._letters = letters

    async def answer(self, request: LambdaRequest, caller: Actor, request_id: str, found: re.Match[str]) -> Answer:
        """Raises WeftError. Dead letters outlive their function, which may not exist."""
        project, name, verb = found["project"], found["name"], found["verb"]
        method = "GET" if verb is None else "POST"
        if request.method != method:
            raise InvalidInput(f"{request.method} is not allowed at this path", reason="methodNotAllowed", hint=method)
        if verb is None:
            caller.require("function:get", project, "see dead letters")
            after = dict(parse_qsl(request.query)).get("after", "")
            events = await self._letters.dead(project, name, MOST_LISTED, after)
            return answer_json({"items": [_describe(event) for event in events]}, request_id)
        caller.require(f"function:{verb}", project, f"{verb} dead letters")
        act = self._letters.redrive if verb == "redrive" else self._letters.purge
        return answer_json({"count": await act(project, name)}, request_id)


def _describe(event: Event) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": event.id,
        "qualifier": event.qualifier,
        "origin": event.origin,
        "accepted_at": event.accepted_at,
        "dead_at": event.dead_at,
        "tries": event.tries,
        "error_type": event.error_type,
        "error": event.error,
    }
    try:
        shown["payload"] = event.payload.decode()
    except UnicodeDecodeError:
        shown["payload_base64"] = base64.b64encode(event.payload).decode()
    return shown
