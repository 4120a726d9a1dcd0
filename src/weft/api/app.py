"""The doors as an ASGI application: authenticate, route, answer; every error becomes a problem document.

Nothing that comes in may make it fail: what is wrong with a request is the request's problem, and told so.
"""

from __future__ import annotations

import logging
import re

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import weft
from weft.api.authenticate import authenticate
from weft.api.call import Actor, Call
from weft.api.doors import Doors
from weft.api.problem import problem_response, status_of
from weft.api.routes import route
from weft.contracts.store import PreconditionFailed
from weft.objects.errors import InvalidInput, Unavailable, WeftError

VERSION = (b"weft-version", weft.__version__.encode())  # clients of another release say so to their people
MOST_BUSY = 512  # requests in hand; streams don't count
# A body is handed over in such pieces, each once its reader has taken what came before: of TLS each connection keeps,
# as long as it lasts, buffers as large as the largest piece that ever went through it.
PIECE_BYTES = 65_536
_SECRET = re.compile(r"(?<=_)[0-9a-f]{16,}")
_log = logging.getLogger("weft.api")


def build_app(doors: Doors) -> ASGIApp:
    """The application over ``doors``; whoever serves it calls ``doors.start`` before and ``doors.stop`` after."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = Call(scope, receive)
        began = doors.clock.elapsed()
        response = await _answer(doors, call)
        response.raw_headers += [(b"x-request-id", call.request_id.encode()), VERSION]
        await _send(response, call, scope, receive, send)
        _tell(call, response.status_code, doors.clock.elapsed() - began)

    return app


async def _answer(doors: Doors, call: Call) -> Response:
    try:
        if doors.busy >= MOST_BUSY:
            raise Unavailable("the server has too much to do", hint="try again", retry_after_seconds=1)
        doors.busy += 1
        try:
            call.actor = await authenticate(doors, call)
            return await route(doors, call)
        finally:
            doors.busy -= 1
    except WeftError as error:
        return problem_response(_public(call, error), call.request_id)
    except RecursionError:
        return problem_response(InvalidInput("the request is nested too deeply"), call.request_id)
    except Exception:  # a defect fails this request, and none of the others
        return problem_response(_unforeseen(call), call.request_id)


async def _send(response: Response, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
    began = False

    async def noting_send(message: Message) -> None:
        nonlocal began
        began = True
        body = message.get("body", b"")
        if len(body) <= PIECE_BYTES:
            await send(message)
            return
        for start in range(0, len(body), PIECE_BYTES):
            is_last = start + PIECE_BYTES >= len(body)
            more = message.get("more_body", False) if is_last else True
            await send({**message, "body": body[start : start + PIECE_BYTES], "more_body": more})

    try:
        await response(scope, receive, noting_send)
    except Exception:  # as above; an answer that has begun just breaks off
        error = _unforeseen(call)
        if not began:
            await problem_response(error, call.request_id)(scope, receive, send)


def _public(call: Call, error: WeftError) -> WeftError:
    """``error`` as a stranger may read it."""
    if isinstance(error, PreconditionFailed):
        return Unavailable("someone else wrote at the same time", hint="try again", retry_after_seconds=1)
    if status_of(error) == 500:
        _log.error("request %s failed: %s", call.request_id, error.message)
        return WeftError("the server failed", hint=f"its log says more about request {call.request_id}")
    return error


def _unforeseen(call: Call) -> WeftError:
    _log.exception("request %s failed: %s %s", call.request_id, call.method, _shown_path(call))
    return WeftError("the server failed", hint=f"its log says more about request {call.request_id}")


def _shown_path(call: Call) -> str:
    """The path as it may stand in a log: in one line, and without a token that somebody put there."""
    path = call.scope["path"][:1000].encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
    return _SECRET.sub("…", path)[:200]


def _tell(call: Call, status: int, seconds: float) -> None:
    """One line for the log; reads and heartbeats are told only to those who debug."""
    quiet = status < 400 and (call.method == "GET" or call.scope["path"].endswith(":report"))
    level = logging.DEBUG if quiet else logging.INFO
    if _log.isEnabledFor(level):
        actor: Actor | None = call.known_actor
        _log.log(
            level,
            "%s %s %d %.0f ms by %s, request %s",
            call.method,
            _shown_path(call),
            status,
            seconds * 1000,
            actor.name if actor is not None else "nobody",
            call.request_id,
        )
