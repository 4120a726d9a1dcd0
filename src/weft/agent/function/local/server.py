"""HTTP for programs at the node: ``POST /PROJECT/FUNCTION`` with ``Authorization: Bearer TOKEN`` runs the function once, with the
body as its event, and answers as Lambda's Invoke does. Everything of a caller is bounded: rate, connections, body, time.

Source: AWS Lambda API reference, "Invoke"."""

from __future__ import annotations

import math
import re
import socket
import ssl
from typing import Any

import msgspec

from weft.agent.function.local.functions import MOST_AT_ONCE, LocalFunctions
from weft.contracts.clock import Clock
from weft.contracts.driver.function import LATEST
from weft.objects.errors import InvalidInput, NotAuthenticated, NotFound, Throttled, Unavailable, WeftError
from weft.protocol.invocations import MAX_PAYLOAD_BYTES
from weft.serving.answer import Answer
from weft.serving.rate import RateBound
from weft.serving.request import BodyLost, Request
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds

MOST_A_SECOND = 500.0  # requests of one address
MOST_WRONG_A_SECOND = 5.0  # of these with a wrong token
_PATH = re.compile(r"/([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9-]{0,62})")
_BEARER = "bearer "
_BOUNDS = Bounds(
    most_connections=2 * MOST_AT_ONCE,
    most_unwanted_bytes=65_536,
    most_body_bytes=MAX_PAYLOAD_BYTES,
    most_held_bytes=8 * MAX_PAYLOAD_BYTES,
)
_STATUS: tuple[tuple[type[WeftError], int], ...] = (
    (NotAuthenticated, 401),
    (NotFound, 404),
    (InvalidInput, 400),
    (Throttled, 429),
)


class LocalCalls:
    """Answers requests for ``functions``."""

    def __init__(self, functions: LocalFunctions, clock: Clock) -> None:
        self._functions, self._clock = functions, clock
        self._rate, self._wrong = RateBound(MOST_A_SECOND), RateBound(MOST_WRONG_A_SECOND)

    async def answer(self, request: Request) -> Answer:
        try:
            return await self._invoke(request)
        except BodyLost:
            return make_error(400, "incompleteBody", "the body ended too early")
        except WeftError as problem:
            status = next((status for type_, status in _STATUS if isinstance(problem, type_)), 503)
            message = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
            return make_error(status, problem.token, message, problem.retry_after_seconds)

    async def _invoke(self, request: Request) -> Answer:
        self._bound(self._rate, request.address)
        found = _PATH.fullmatch(request.path)
        if found is None:
            raise NotFound(f"{request.path[:80]!r} is not the path of a function", hint="the path is /PROJECT/FUNCTION")
        if request.method != "POST":
            return make_error(405, "methodNotAllowed", "only POST: its body is the event")
        given = request.header(b"authorization")
        token = given[len(_BEARER) :].strip(" \t") if given.lower().startswith(_BEARER) else ""
        try:
            entry = self._functions.find(found[1], found[2], token.encode("latin-1"))  # the bytes as they were sent
        except (NotAuthenticated, Unavailable):
            self._bound(self._wrong, request.address)
            raise
        pieces: list[bytes] = []
        while piece := await request.read():
            pieces.append(piece)
        payload = b"".join(pieces) or b"{}"
        check_payload(payload)
        result = await self._functions.invoke(entry, payload)
        headers = [("content-type", "application/json"), ("x-amzn-requestid", result.id)]
        headers.append(("x-amz-executed-version", entry.recipe.version or LATEST))
        if result.error:
            headers.append(("x-amz-function-error", result.error))
        return Answer(200, result.payload, tuple(headers))

    def _bound(self, rate: RateBound, who: str) -> None:
        """Raises Throttled."""
        if wait := rate.take(who, self._clock.elapsed()):
            raise Throttled("too many requests from this address", hint="send fewer", retry_after_seconds=wait)


def check_payload(payload: bytes) -> None:
    """Pure. It builds no objects of the JSON, which would take 35 times its size. Raises InvalidInput."""
    try:
        payload.decode()
        msgspec.json.decode(payload, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidInput("the body is not JSON", reason="invalidPayload", hint="send the event as JSON") from None


def make_server(
    functions: LocalFunctions, socket_: socket.socket, tls: ssl.SSLContext | None, clock: Clock
) -> HttpServer:
    """A server at ``socket_`` that isn't started yet."""
    return HttpServer(LocalCalls(functions, clock).answer, [socket_], tls, clock, _BOUNDS, refuse)


def refuse(status: int, message: str) -> Answer | None:
    """The answer to a request that the HTTP server refuses. Pure."""
    return make_error(
        status, {408: "tooSlow", 413: "tooLarge", 503: "tooManyRequests"}.get(status, "badRequest"), message
    )


def make_error(status: int, reason: str, message: str, retry_after_seconds: float | None = None) -> Answer:
    """An error as the gateway's functions API writes it. Pure."""
    body: dict[str, Any] = {"Type": "User" if status < 500 else "Service", "Message": message, "WeftReason": reason}
    headers = [("content-type", "application/json")]
    if retry_after_seconds is not None:
        headers.append(("retry-after", str(max(1, math.ceil(retry_after_seconds)))))
    return Answer(status, msgspec.json.encode(body), tuple(headers))
