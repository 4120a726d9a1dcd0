"""Reads the history of metrics: the part of Prometheus' HTTP API that Grafana needs, passed on to the database.

``/api/v1/query``, ``query_range``, ``series``, ``labels`` and ``label/NAME/values``, by GET or POST. The asker's projects are
enforced by VictoriaMetrics itself: it adds ``extra_filters[]`` to every selector of a query, wherever it stands. Only the
parameters that are known here are passed on. A Prometheus can't do that, so it answers only people who may see all projects'.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from weft.api.auth.authenticate import read_credentials
from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.metrics.bounds import PARAMETERS, check_parameters
from weft.api.request.call import JSON, Call
from weft.api.route import Route
from weft.api.servers.away import name_away
from weft.api.servers.history_copies import Behind
from weft.contracts.http.connection import Reply
from weft.objects.errors import Forbidden, InvalidInput, Unavailable, WeftError
from weft.serving.answer import Answer
from weft.telemetry.metrics.database import DatabaseEnded, make_off
from weft.trust.credentials import Actor

PERMISSION = "metric:list"
PROMETHEUS_PATH = "/api/v1/"
NAMES = "weft_.*"  # what people who are limited to projects see of a database that holds more
MOST_BYTES = 64 << 20
MOST_SECONDS = 12.0  # a little more than the database takes for itself
MOST_BODY_BYTES = 65_536
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_SUCCESS = b'{"status":"success"'
_TYPES = {400: "bad_data", 413: "bad_data", 408: "timeout", 429: "execution", 503: "unavailable"}


async def read_metrics(context: ApiContext, call: Call, path: str) -> Answer:
    """The answer to ``/api/v1/PATH``. Raises WeftError."""
    projects = _find_projects(call.actor)
    given = await _read_parameters(call)
    asked = check_parameters(path, given, context.clock.now())
    history = context.history
    if history is None:
        raise make_off()
    if projects is not None:
        if not history.keep_seconds and history.find().kind != "victoriametrics":
            raise Forbidden(
                "the server's metrics are in a Prometheus, which can't tell projects apart",
                hint=f"it takes {PERMISSION} in all projects, or a server with --metrics local or victoriametrics=URL",
            )
        asked.append(("extra_filters[]", limit_to(projects)))
    behind = Behind([], []) if call.is_forwarded else await context.history_copies.find_behind()
    with history.taking_turn(call.actor):
        if (whole := await _ask_others(context, call, path, given, behind.awake)) is not None:
            return Answer(200, whole, JSON)
        try:
            reply = await history.asker.ask(
                history.find(),
                f"/api/v1/{path}",
                urlencode(asked).encode(),
                FORM,
                seconds=MOST_SECONDS,
                most_bytes=MOST_BYTES,
            )
        except DatabaseEnded:  # it may have been the query
            raise
        except Unavailable:
            serving = context.others.list_serving() if history.keep_seconds and not call.is_forwarded else []
            if (whole := await _ask_others(context, call, path, given, serving)) is not None:
                return Answer(200, whole, JSON)
            raise
    if reply.status != 200:
        return _pass_on(reply)
    return _name_away(reply.body, sorted([*behind.awake, *behind.away]))


async def _ask_others(
    context: ApiContext, call: Call, path: str, given: Sequence[tuple[str, str]], names: Sequence[str]
) -> bytes | None:
    """The answer of the first of these servers that gives one: from what it has itself, with the person's own token."""
    headers = {**FORM, "Authorization": read_credentials(call), "X-Request-Id": call.request_id}
    for name in names:
        with suppress(Unavailable):
            answer = await context.others.ask(
                name,
                "POST",
                f"{PROMETHEUS_PATH}{path}",
                urlencode(given).encode(),
                headers=headers,
                seconds=MOST_SECONDS,
            )
            if answer.status == 200 and answer.body.startswith(_SUCCESS):
                return answer.body
    return None


def _name_away(body: bytes, servers: Sequence[str]) -> Answer:
    """The database's answer; with ``servers``, which may have what is missing in it, named in a header, and where clients of
    Prometheus look for warnings."""
    if servers and body.startswith(b"{"):
        warning = f"the history may have gaps: {', '.join(servers)} may have more, and can't be reached"
        body = b'{"warnings":' + msgspec.json.encode([warning]) + b"," + body[1:]
    return Answer(200, body, (*JSON, *name_away(servers)))


async def _read_label(context: ApiContext, call: Call, name: str) -> Answer:
    return await read_metrics(context, call, f"label/{name}/values")


def limit_to(projects: frozenset[str]) -> str:
    """The selector that every selector of a query is narrowed by. Names of projects have letters, digits and hyphens."""
    return f'{{__name__=~"{NAMES}",project=~"{"|".join(sorted(projects))}"}}'


def _find_projects(actor: Actor) -> frozenset[str] | None:
    """The projects whose metrics ``actor`` may see; None: all. Raises Forbidden."""
    require_person(actor, "read metrics")
    actor.require_somewhere(PERMISSION, "read metrics")
    return actor.find_projects(PERMISSION)


async def _read_parameters(call: Call) -> list[tuple[str, str]]:
    text = call.request.query
    if call.method == "POST":
        if not call.request.header(b"content-type").startswith("application/x-www-form-urlencoded"):
            raise InvalidInput(
                "the body must be form-encoded",
                field="Content-Type",
                hint="send it as application/x-www-form-urlencoded",
            )
        body = await call.read_body(MOST_BODY_BYTES)
        text = "&".join(part for part in (text, body.decode("latin-1")) if part)
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise InvalidInput("the parameters can't be read", hint="send at most 100, in UTF-8") from None


def _pass_on(reply: Reply) -> Answer:
    """The database's refusal, without what it says of itself."""
    try:
        told: Any = msgspec.json.decode(reply.body)
        text = str(told["error"])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError, KeyError):
        text = ""
    if reply.status in (400, 422):
        return _error_answer(400, "bad_data", text[:1000] or "the query was refused")
    return _error_answer(503, "unavailable", "the database for metrics could not answer; try again", Unavailable.reason)


def as_prometheus(answer: Answer, problem: WeftError) -> Answer:
    """``answer``, a problem document, in Prometheus' form, so that Grafana shows it, with our ``reason``."""
    text = problem.message + (f"; {problem.hint}" if problem.hint else "")
    told = _error_answer(answer.status, _TYPES.get(answer.status, "execution"), text, problem.token)
    told.headers = (*told.headers, *(header for header in answer.headers if header[0] != "content-type"))
    told.last = answer.last
    return told


def _error_answer(status: int, kind: str, text: str, reason: str = InvalidInput.reason) -> Answer:
    """``reason`` stands beside what Prometheus' clients read, for weft's own."""
    told = {"status": "error", "errorType": kind, "error": text, "reason": reason}
    return Answer(status, msgspec.json.encode(told), JSON)


_ANSWER = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"enum": ["success", "error"]}, "data": {}, "error": {"type": "string"}},
}
_QUERIES = {
    "query": "Metrics at one moment, by a PromQL query",
    "query_range": "Metrics over a span of time, by a PromQL query",
    "series": "The series that selectors name",
    "labels": "The names of labels",
}
ROUTES = (
    *(
        Route(
            method,
            f"{PROMETHEUS_PATH}{path}",
            functools.partial(read_metrics, path=path),
            summary,
            permission=PERMISSION,
            where="own",
            query=PARAMETERS[path],
            answers=_ANSWER,
        )
        for path, summary in _QUERIES.items()
        for method in ("GET", "POST")
    ),
    Route(
        "GET",
        f"{PROMETHEUS_PATH}label/{{name}}/values",
        _read_label,
        "The values of a label",
        permission=PERMISSION,
        where="own",
        query=PARAMETERS["values"],
        answers=_ANSWER,
    ),
)
