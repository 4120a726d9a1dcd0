"""The API server: authenticate, route, record, answer; every error becomes a problem document.

No request may make it fail: a faulty one gets a problem document, and so does one that meets a defect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import weft
from weft.api.audit.recorder import REFUSED, record, record_interrupted
from weft.api.auth.authenticate import authenticate, find_known
from weft.api.context import ApiContext
from weft.api.metrics.query import PROMETHEUS_PATH, as_prometheus
from weft.api.request.call import Call
from weft.api.request.problem import problem_answer, status_of
from weft.api.routes import FoundRoute, find_route
from weft.contracts.store import PreconditionFailed
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.serving.answer import Answer, Answers
from weft.serving.request import Request
from weft.trust.credentials import Actor

VERSION = ("weft-version", weft.__version__)  # clients of another release mention it to their users
MOST_BUSY = 512  # requests in hand; streams don't count
_log = logging.getLogger("weft.api")
LogLine = Callable[[str, float, str], None]  # the logger's name, the time (unix seconds), and the line


def build_app(context: ApiContext, log_line: LogLine | None = None) -> Answers:
    """The handler of requests over ``context``; its server calls ``context.start`` before and ``context.stop`` after.
    ``log_line`` gets each request's line; without it ``logging`` does."""
    log_line = log_line or _log_line

    async def answer(request: Request) -> Answer:
        call = Call(request)
        found = find_route(call.method, call.path)
        topic = found.topic
        began = call.began_at = context.clock.elapsed()
        traces = context.traces
        traced = traces.begin(call, writes=found.writes and not found.streams) if traces is not None else None
        made = await _answer(context, call, found)
        topic = call.topic or topic
        is_of_interest = topic.when != "refused" or made.status in REFUSED  # few reads are
        if is_of_interest and (recorded := record(context, call, topic, made.status)) is not None:
            try:
                await recorded
            except (Unavailable, asyncio.CancelledError) as error:
                made = await _replace(made, error, call)
        made.headers += (("x-request-id", call.request_id), VERSION)
        if context.servers.header and call.known_actor is not None:
            made.headers += context.servers.header
        if traces is not None and traced is not None:
            traces.end(traced, call, topic, made.status)
        took = context.clock.elapsed() - began
        context.requests.add(call.method, made.status, took)
        _log_request(context, log_line, call, made.status, took)
        return made

    return answer


async def _answer(context: ApiContext, call: Call, found: FoundRoute) -> Answer:
    try:
        if context.busy >= MOST_BUSY:
            raise Unavailable("the server is overloaded", hint="try again", retry_after_seconds=1)
        context.busy += 1
        try:
            actor = find_known(context, call.bearer) or await authenticate(context, call)
            call.known_actor = actor.ask_for(call.asked_for) if actor.is_cluster else actor
            if found.topic.when == "always":
                context.audit.require_space()
            if found.project and context.rates.has_limits:
                context.rates.take(call.actor, found.project)
            if found.writes:
                context.writes.take(call.actor, call.began_at)
            return await found.handler(context, call, *found.given)
        finally:
            context.busy -= 1
    except WeftError as error:
        call.problem = _public(call, error)
    except RecursionError:
        call.problem = InvalidInput("the request is nested too deeply")
    except asyncio.CancelledError:
        record_interrupted(context, call, found.topic)
        raise
    except Exception:  # a defect fails this request and no other
        call.problem = _unforeseen(call)
    return _refuse(call)


def _refuse(call: Call) -> Answer:
    """The answer for the call's problem, in the form that its path's clients read."""
    assert call.problem is not None
    answer = problem_answer(call.problem, call.request_id)
    return as_prometheus(answer, call.problem) if call.path.startswith(PROMETHEUS_PATH) else answer


async def _replace(made: Answer, error: Unavailable | asyncio.CancelledError, call: Call) -> Answer:
    """The answer in place of ``made``, which isn't in the audit log. Raises CancelledError again."""
    if made.pieces is not None:
        await made.pieces.aclose()
    if isinstance(error, Unavailable):
        return problem_answer(error, call.request_id)
    raise error


def _public(call: Call, error: WeftError) -> WeftError:
    """``error`` as a stranger may read it."""
    if isinstance(error, PreconditionFailed):
        return Unavailable("another request changed the same object", hint="try again", retry_after_seconds=1)
    if status_of(error) == 500:
        _log.error("request %s failed: %s", call.request_id, error.message)
        return _failed(call)
    return error


def _unforeseen(call: Call) -> WeftError:
    _log.exception("request %s failed: %s %s", call.request_id, call.method, call.shown_path)
    return _failed(call)


def _failed(call: Call) -> WeftError:
    return WeftError("the server failed", hint=f"find the cause in the server's log, at request {call.request_id}")


def _log_request(context: ApiContext, log_line: LogLine, call: Call, status: int, seconds: float) -> None:
    """Log one line; of reads, heartbeats and samples only at level debug."""
    quiet = status < 400 and (call.method == "GET" or call.path.endswith((":report", ":traces", "/history/samples")))
    if quiet and not _log.isEnabledFor(logging.DEBUG):
        return
    actor: Actor | None = call.known_actor
    by = actor.name if actor is not None else "nobody"
    line = f"{call.method} {call.shown_path} {status} {seconds * 1000:.0f} ms by {by}, request {call.request_id}"
    if quiet:
        _log.debug("%s", line)
    else:
        log_line(_log.name, context.clock.now(), line)


def _log_line(_source: str, _at: float, line: str) -> None:
    _log.info("%s", line)
