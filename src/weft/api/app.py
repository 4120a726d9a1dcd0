"""The API server: authenticate, route, answer; every error becomes a problem document.

Nothing that comes in may make it fail: what is wrong with a request is the request's problem, and told so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from urllib.parse import unquote

import weft
from weft.api.auth.authenticate import authenticate
from weft.api.context import ApiContext
from weft.api.request.call import Call
from weft.api.request.problem import problem_answer, status_of
from weft.api.routes import route
from weft.contracts.store import PreconditionFailed
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.serving.answer import Answer, Answers
from weft.serving.request import Request
from weft.trust.credentials import Actor

VERSION = ("weft-version", weft.__version__)  # clients of another release say so to their people
MOST_BUSY = 512  # requests in hand; streams don't count
_SECRET = re.compile(r"(?<=_)[0-9a-f]{16,}")
_log = logging.getLogger("weft.api")
Say = Callable[[str, float, str], None]  # who says it, when (unix seconds), and the line


def build_app(context: ApiContext, say: Say | None = None) -> Answers:
    """What answers requests over ``context``; its server calls ``context.start`` before and ``context.stop`` after. ``say``
    takes the line that tells of a request; without it ``logging`` does."""
    tell = say or _say

    async def answer(request: Request) -> Answer:
        call = Call(request)
        began = context.clock.elapsed()
        made = await _answer(context, call)
        made.headers += (("x-request-id", call.request_id), VERSION)
        _tell(context, tell, call, made.status, context.clock.elapsed() - began)
        return made

    return answer


async def _answer(context: ApiContext, call: Call) -> Answer:
    try:
        if context.busy >= MOST_BUSY:
            raise Unavailable("the server is overloaded", hint="try again", retry_after_seconds=1)
        context.busy += 1
        try:
            call.actor = await authenticate(context, call)
            return await route(context, call)
        finally:
            context.busy -= 1
    except WeftError as error:
        return problem_answer(_public(call, error), call.request_id)
    except RecursionError:
        return problem_answer(InvalidInput("the request is nested too deeply"), call.request_id)
    except Exception:  # a defect fails this request, and none of the others
        return problem_answer(_unforeseen(call), call.request_id)


def _public(call: Call, error: WeftError) -> WeftError:
    """``error`` as a stranger may read it."""
    if isinstance(error, PreconditionFailed):
        return Unavailable("someone else wrote at the same time", hint="try again", retry_after_seconds=1)
    if status_of(error) == 500:
        _log.error("request %s failed: %s", call.request_id, error.message)
        return WeftError("the server failed", hint=f"the server's log says more about request {call.request_id}")
    return error


def _unforeseen(call: Call) -> WeftError:
    _log.exception("request %s failed: %s %s", call.request_id, call.method, _shown_path(call))
    return WeftError("the server failed", hint=f"the server's log says more about request {call.request_id}")


def _shown_path(call: Call) -> str:
    """The path as it may stand in a log: in one line, and without a token that somebody put there."""
    path = call.path[:1000]
    if "%" in path:
        path = unquote(path)
    if not (path.isascii() and path.isprintable()):
        path = path.encode("unicode_escape").decode()
    return (_SECRET.sub("…", path) if "_" in path else path)[:200]


def _tell(context: ApiContext, say: Say, call: Call, status: int, seconds: float) -> None:
    """One line for the log; reads and heartbeats are told only to those who debug."""
    quiet = status < 400 and (call.method == "GET" or call.path.endswith(":report"))
    if quiet and not _log.isEnabledFor(logging.DEBUG):
        return
    actor: Actor | None = call.known_actor
    by = actor.name if actor is not None else "nobody"
    line = f"{call.method} {_shown_path(call)} {status} {seconds * 1000:.0f} ms by {by}, request {call.request_id}"
    if quiet:
        _log.debug("%s", line)
    else:
        say(_log.name, context.clock.now(), line)


def _say(_source: str, _at: float, line: str) -> None:
    _log.info("%s", line)
