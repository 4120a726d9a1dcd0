"""Routes by which servers give each other their history of metrics, so that each has all of it: the moments that one has, their
samples, and those of a moment that has just been recorded."""

from __future__ import annotations

from weft.api.auth.authorise import require_server
from weft.api.context import ApiContext
from weft.api.metrics.bounds import read_time
from weft.api.request.call import Call, json_answer
from weft.api.route import Route, Topic
from weft.api.servers.history_copies import MOST_SPAN_SECONDS, Moments
from weft.api.state.history import History
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.telemetry.metrics.database import make_off
from weft.telemetry.metrics.moments import pack_samples, put_samples, read_moments

MOST_BODY_BYTES = 4 << 20
_WHAT = "read or write another server's history of metrics"


async def list_moments(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/history/moments``: those from ``start`` to ``end``, in unix seconds."""
    history, start, end = _require(context, call), *_read_span(call)
    found = await read_moments(history.asker, history.find(), start, end)
    return json_answer(Moments(found, context.history_copies.reached))


async def give_samples(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/history/samples``: those from ``start`` to ``end``, packed. Raises TooLarge."""
    history, start, end = _require(context, call), *_read_span(call)
    async with context.history_copies.giving:
        packed = await pack_samples(history.asker, history.find(), start, end)
    return Answer(200, packed, (("content-type", "application/octet-stream"),))


async def take_samples(context: ApiContext, call: Call) -> Answer:
    """``PUT /v1/history/samples``: they are in the history before the answer."""
    history = _require(context, call)
    call.query()
    await put_samples(history.asker, history.find(), await call.read_body(MOST_BODY_BYTES))
    return Answer(204)


def _require(context: ApiContext, call: Call) -> History:
    """The history that the server itself keeps. Raises Forbidden, Unavailable."""
    require_server(call.actor, _WHAT)
    if context.history is None or not context.history.keep_seconds:
        raise make_off()
    return context.history


def _read_span(call: Call) -> tuple[float, float]:
    query = call.query("start", "end")
    start, end = read_time(query.get("start", ""), "start"), read_time(query.get("end", ""), "end")
    if not 0 <= end - start <= MOST_SPAN_SECONDS:
        raise InvalidInput(
            "the span is too long, or ends before its start",
            field="end",
            hint=f"{MOST_SPAN_SECONDS:.0f} s are the most",
        )
    return start, end


_SPAN = ("start", "end")

ROUTES = (
    Route(
        "GET",
        "/v1/history/moments",
        list_moments,
        "The moments of which this server's history of metrics has samples",
        where="servers",
        query=_SPAN,
        answers=Moments,
    ),
    Route(
        "GET",
        "/v1/history/samples",
        give_samples,
        "Samples of this server's history of metrics, packed",
        where="servers",
        query=_SPAN,
        answers={},
        media_type="application/octet-stream",
    ),
    Route(
        "PUT",
        "/v1/history/samples",
        take_samples,
        "Take samples that another server has recorded",
        where="servers",
        topic=Topic("refused", "write", "server"),
        status="204",
    ),
)
