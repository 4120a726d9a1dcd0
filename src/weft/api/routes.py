"""Which handler answers which path. Routes of objects derive from the kinds; the others are in two tables."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from weft import __version__
from weft.api import accounting, openapi
from weft.api.audit import pages as audit
from weft.api.auth import login, password
from weft.api.auth.authorise import authorise_write, require_person
from weft.api.capabilities import list_capabilities
from weft.api.code import blobs, upload
from weft.api.context import ApiContext
from weft.api.metrics import own, query
from weft.api.node import egress_endpoints, join, report, secrets, usage
from weft.api.object import bulk, delete, read, verbs, write
from weft.api.request.call import Call, json_answer, read_segments
from weft.api.request.target import Target, no_such_path, read_target
from weft.api.watch import events, objects
from weft.contracts.driver.function import REGION
from weft.kinds.registry import KINDS
from weft.kinds.user import USER
from weft.objects.errors import InvalidInput, NotFound
from weft.serving.answer import Answer

MOST_KEPT = 2048  # paths whose handlers are cached …
LONGEST_KEPT = 200  # … if they have no more characters
Plain = Callable[[ApiContext, Call], Awaitable[Answer]]
T = TypeVar("T")
OnTarget = Callable[[ApiContext, Call, Target], Awaitable[Answer]]


def route(context: ApiContext, call: Call) -> Awaitable[Answer]:
    """The answer to an authenticated request."""
    find = _find if len(call.path) <= LONGEST_KEPT else _find.__wrapped__
    handler, given = find(call.method, call.path)
    if context.rates.has_limits and (project := _find_project(given[0] if given else "", call.path)):
        context.rates.take(call.actor, project)
    if call.method != "GET":
        context.writes.take(call.actor, context.clock.elapsed())
    answer: Awaitable[Answer] = handler(context, call, *given)
    return answer


@functools.lru_cache(MOST_KEPT)
def _find(method: str, path: str) -> tuple[Callable[..., Awaitable[Answer]], tuple[Any, ...]]:
    """The handler, and its arguments after context and call. Pure, so it can be cached."""
    segments = read_segments(path)
    if segments[:2] == ["api", "v1"]:  # Prometheus' paths, where its clients look for them
        return _find_metrics(method, segments[2:])
    if segments == ["metrics"]:
        return _choose(method, {"GET": own.show_own}), ()
    if segments[0] != "v1" or len(segments) < 2:
        raise no_such_path()
    rest = segments[1:]
    if len(rest) == 1 and rest[0] in BY_HAND:
        return _choose(method, BY_HAND[rest[0]]), ()
    if len(rest) == 2 and rest[0] == "blobs":
        return _choose(method, {"GET": blobs.blob}), (rest[1],)
    if len(rest) == 3 and rest[0] == "projects" and rest[2] == "accounting":
        return _choose(method, {"GET": accounting.accounting}), (rest[1],)
    if len(rest) == 4 and rest[0] == "projects" and rest[2] == "code":
        return _choose(method, {"GET": upload.code, "PUT": upload.code}), (rest[1], rest[3])
    target = read_target(rest)
    if target.kind is USER and target.verb == "passwd":
        return _choose(method, {"POST": password.set_password}), (target.require_name(),)
    if target.kind.lifetime.runs_workloads and target.verb in BY_NODES:
        return _choose(method, {"POST": BY_NODES[target.verb]}), (target.require_name(),)
    return _choose(method, _methods(target)), (target,)


def _find_metrics(method: str, rest: list[str]) -> tuple[Callable[..., Awaitable[Answer]], tuple[Any, ...]]:
    is_values = len(rest) == 3 and rest[0] == "label" and rest[2] == "values"
    if not is_values and rest not in PROMETHEUS:
        raise no_such_path()
    methods = {"GET": query.read_metrics} if is_values else {"GET": query.read_metrics, "POST": query.read_metrics}
    return _choose(method, methods), ("/".join(rest),)


def _find_project(given: Target | str, path: str) -> str | None:
    """The project that a path names."""
    if isinstance(given, Target):
        return given.name if given.kind.lifetime.holds_objects else given.project
    return given if read_segments(path)[1] == "projects" else None


def _methods(target: Target) -> Mapping[str, OnTarget]:
    if target.verb is None:
        return ON_COLLECTION if target.name is None else ON_OBJECT
    if target.name is not None:
        return {"POST": verbs.act}
    if target.verb == "batch":
        return ON_BATCH
    raise NotFound(f"{target.kind.plural} have no verb {target.verb[:40]!r}", hint="the only one is batch")


def _choose(method: str, methods: Mapping[str, T]) -> T:
    handler = methods.get(method)
    if handler is None:
        raise InvalidInput(
            f"{method} is not allowed at this path", reason="methodNotAllowed", hint="possible: " + ", ".join(methods)
        )
    return handler


def _list_or_watch(context: ApiContext, call: Call, target: Target) -> Awaitable[Answer]:
    handler = objects.watch if call.wants_watch else read.list_
    return handler(context, call, target)


def _if_allowed(what: str, handler: OnTarget, *, one: bool = True) -> OnTarget:
    """``handler`` for actors that may ``what`` objects of the kind, ``one`` in a request or many."""

    def checked(context: ApiContext, call: Call, target: Target) -> Awaitable[Answer]:
        authorise_write(call.actor, target.kind, target.project, what, one=one)
        return handler(context, call, target)

    return checked


async def _healthz(context: ApiContext, call: Call) -> Answer:
    """Answers only if the store does; ``store_ms`` is how long that took."""
    call.query()
    began = context.clock.elapsed()
    await context.store.get("/project/-/default")
    took = round((context.clock.elapsed() - began) * 1000, 2)
    return json_answer({"status": "ok", "version": __version__, "store_ms": took, "capabilities": list_capabilities()})


async def _gateway(context: ApiContext, call: Call) -> Answer:
    require_person(call.actor, "ask where the gateway is")
    call.query()
    functions = context.settings.functions_for(call.host)
    return json_answer(
        {
            "streams": context.settings.gateway_for(call.host),
            "functions": f"https://{functions}" if functions else "",
            "region": REGION,
            "server_name": context.settings.server_name,
        }
    )


async def _kinds(context: ApiContext, call: Call) -> Answer:
    require_person(call.actor, "list the kinds")
    call.query()
    return json_answer(
        {
            "items": [
                {
                    "name": kind.name,
                    "plural": kind.plural,
                    "title": kind.title,
                    "summary": kind.summary,
                    "scope": kind.scope,
                    "writer": kind.access.writer,
                    "aliases": kind.display.aliases,
                    "verbs": [{"name": v.name, "summary": v.summary, "stream": v.stream} for v in kind.verbs],
                    "columns": [column.title for column in kind.display.columns],
                }
                for kind in KINDS
            ]
        }
    )


async def _openapi(context: ApiContext, call: Call) -> Answer:
    require_person(call.actor, "read the API's description")
    call.query()
    return json_answer(await asyncio.to_thread(openapi.describe_api))


BY_HAND: dict[str, dict[str, Plain]] = {
    "accounting": {"GET": accounting.accounting},
    "apply": {"POST": bulk.apply},
    "audit": {"GET": audit.read},
    "audit:verify": {"GET": audit.verify},
    "events": {"GET": events.events},
    "gateway": {"GET": _gateway},
    "healthz": {"GET": _healthz},
    "join": {"POST": join.join},
    "kinds": {"GET": _kinds},
    "openapi.json": {"GET": _openapi},
    "login": {"POST": login.login},
    "usage": {"GET": usage.usage},
    "whoami": {"GET": login.who_am_i},
}
PROMETHEUS = (["query"], ["query_range"], ["series"], ["labels"])
BY_NODES: dict[str | None, Callable[[ApiContext, Call, str], Awaitable[Answer]]] = {
    "egress": egress_endpoints.egress,
    "renew": join.renew,
    "report": report.report,
    "secrets": secrets.secrets,
}
ON_COLLECTION: dict[str, OnTarget] = {"GET": _list_or_watch, "POST": _if_allowed("create", write.create)}
ON_BATCH: dict[str, OnTarget] = {"POST": _if_allowed("create", bulk.create_batch, one=False)}
ON_OBJECT: dict[str, OnTarget] = {
    "GET": read.get,
    "PUT": _if_allowed("change", write.put),
    "PATCH": _if_allowed("change", write.patch),
    "DELETE": _if_allowed("delete", delete.delete),
}
