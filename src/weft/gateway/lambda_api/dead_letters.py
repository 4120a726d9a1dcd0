"""The HTTP API of dead letters: list, run again, delete."""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import parse_qsl

from weft.client.server.endpoints import AWAY_HEADER
from weft.gateway.event_copies.all_dead_letters import AllDeadLetters
from weft.gateway.function_events.queue import Event
from weft.gateway.lambda_api.answers import answer_json
from weft.gateway.lambda_api.http import LambdaRequest
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

DEAD_LETTERS = re.compile(
    r"/v1/projects/(?P<project>[a-z0-9-]{1,63})/functions/(?P<name>[a-z0-9-]{1,63})/dead-letters(?::(?P<verb>redrive|purge))?"
)


class DeadLetterApi:
    def __init__(self, letters: AllDeadLetters) -> None:
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
            letters = await self._letters.find(project, name, after)
            answer = answer_json({"items": [_describe(event) for event in letters.letters]}, request_id)
        else:
            caller.require(f"function:{verb}", project, f"{verb} dead letters")
            letters = await self._letters.act("redrive" if verb == "redrive" else "purge", project, name)
            answer = answer_json({"count": letters.count}, request_id)
        if letters.away:
            answer.headers += ((AWAY_HEADER, ",".join(letters.away)),)
        return answer


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
