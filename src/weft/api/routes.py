"""Find the handler that answers a path, and what the audit log calls it. Routes of objects derive from the kinds; the others are
``ROUTES``, each declared beside its handler."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from weft.api import about, accounting, description, topology
from weft.api.audit import pages as audit
from weft.api.audit.topic import find_topic, topic_of
from weft.api.auth import login, password, session
from weft.api.auth.authorise import authorise_write, require_person
from weft.api.cluster import accept, hello, link
from weft.api.code import blobs, upload
from weft.api.context import ApiContext
from weft.api.dashboard import kinds, search, site, stream, summary, table
from weft.api.log import pages as log
from weft.api.metrics import copies, own, query
from weft.api.network import handler as network
from weft.api.node import (
    devices,
    egress_endpoints,
    invocations,
    join,
    made_images,
    report,
    secrets,
    service_certificates,
    usage,
)
from weft.api.object import bulk, delete, read, repository_key, verbs, write
from weft.api.request.call import JSON, Call, read_segments
from weft.api.request.target import Target, no_such_path, read_target
from weft.api.rotation import pages as rotation
from weft.api.route import Handler, Route, Topic, list_names
from weft.api.servers import join as server_join
from weft.api.trace import pages as trace
from weft.api.watch import events, objects
from weft.kinds.parts.stream_verbs import STREAM_VERBS
from weft.objects.errors import InvalidInput, NotFound, WeftError
from weft.serving.answer import Answer
from weft.trust.redaction import hide_in_text

MOST_KEPT = 2048  # paths whose handlers are cached …
LONGEST_KEPT = 200  # … if they have no more characters
T = TypeVar("T")


class FoundRoute(NamedTuple):
    """Target of a request, by its method and path."""

    handler: Handler
    given: tuple[Any, ...]  # its arguments after context and call
    topic: Topic  # in the audit log
    project: str | None = None  # that the path names
    writes: bool = False
    streams: bool = False  # what a workload's node shows or takes, like logs and exec: it changes no object


def find_route(method: str, path: str) -> FoundRoute:
    """Find the handler that answers the request: also where there is nothing, which the handler says then."""
    found: FoundRoute = (_find if len(path) <= LONGEST_KEPT else _find.__wrapped__)(method, path)
    return found


@functools.lru_cache(MOST_KEPT)
def _find(method: str, path: str) -> FoundRoute:
    """Pure, so it can be cached."""
    try:
        return _locate(method, path)
    except WeftError:
        return FoundRoute(_refuse, (), find_topic(method, path))


def _refuse(context: ApiContext, call: Call) -> Awaitable[Answer]:
    """Raises what the path's search did: an error that was kept would keep its traceback."""
    return _locate(call.method, call.path).handler(context, call)


def _locate(method: str, path: str) -> FoundRoute:
    """Raises NotFound, InvalidInput."""
    segments = read_segments(path)
    if (at := _walk(segments)) is not None:
        node, given = at
        return _found(_choose(method, node.routes), path, given)
    if segments[:1] != ["v1"] or len(segments) < 2:
        raise no_such_path()
    target = read_target(segments[1:])
    project = target.name if target.kind.lifetime.holds_objects else target.project
    streams = target.verb in STREAM_VERBS  # an invocation isn't one of them: what it leads to is worth a trace
    handler, topic = _choose(method, _methods(target)), topic_of(method, target)
    return FoundRoute(handler, (target,), topic, project, method != "GET", streams)


def _found(route: Route, path: str, given: list[str]) -> FoundRoute:
    values = dict(zip(list_names(route.path), given, strict=True))
    topic = find_topic(route.method, path)
    if route.topic is not None:
        # A client may put a token where a name belongs.
        shown = {name: hide_in_text(value[:63]) for name, value in values.items()}
        about = (text.format_map(shown) for text in (route.topic.kind, route.topic.project, route.topic.name))
        topic = Topic(route.topic.when, route.topic.verb, *about)
    return FoundRoute(route.handler, tuple(given), topic, values.get("project"), route.method != "GET")


def _methods(target: Target) -> Mapping[str, Handler]:
    if target.verb is None:
        return ON_COLLECTION if target.name is None else ON_OBJECT
    if target.name is not None:
        return {"POST": verbs.act}
    if target.verb == "batch":
        return ON_BATCH
    raise NotFound(f"{target.kind.plural} have no verb {target.verb[:40]!r}", hint="the only one is batch")


def _choose(method: str, methods: Mapping[str, T]) -> T:
    chosen = methods.get(method)
    if chosen is None:
        raise InvalidInput(
            f"{method} is not allowed at this path", reason="methodNotAllowed", hint="possible: " + ", ".join(methods)
        )
    return chosen


def _list_or_watch(context: ApiContext, call: Call, target: Target) -> Awaitable[Answer]:
    handler = objects.watch if call.wants_watch else read.list_
    return handler(context, call, target)


def _if_allowed(what: str, handler: Handler, *, one: bool = True) -> Handler:
    """``handler`` for actors that may ``what`` objects of the kind, ``one`` in a request or many."""

    def checked(context: ApiContext, call: Call, target: Target) -> Awaitable[Answer]:
        authorise_write(call.actor, target.kind, target.project, what, one=one)
        return handler(context, call, target)

    return checked


ON_COLLECTION: dict[str, Handler] = {"GET": _list_or_watch, "POST": _if_allowed("create", write.create)}
ON_BATCH: dict[str, Handler] = {"POST": _if_allowed("create", bulk.create_batch, one=False)}
ON_OBJECT: dict[str, Handler] = {
    "GET": read.get,
    "PUT": _if_allowed("change", write.put),
    "PATCH": _if_allowed("change", write.patch),
    "DELETE": _if_allowed("delete", delete.delete),
}


async def _describe_api(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/openapi.json``."""
    require_person(call.actor, "read the API's description")
    call.query()
    return Answer(200, await asyncio.to_thread(_render_description), JSON)


def _render_description() -> bytes:
    """It takes a third of a second of processor time, and is the same for as long as the process lives."""
    with _rendering:
        return _render_once()


_rendering = threading.Lock()


@functools.cache
def _render_once() -> bytes:
    return msgspec.json.encode(description.describe_api(ROUTES))


ROUTES: tuple[Route, ...] = (
    *about.ROUTES,
    *accounting.ROUTES,
    *audit.ROUTES,
    *login.ROUTES,
    *session.ROUTES,
    *password.ROUTES,
    *repository_key.ROUTES,
    *accept.ROUTES,
    *hello.ROUTES,
    *link.ROUTES,
    *blobs.ROUTES,
    *upload.ROUTES,
    *copies.ROUTES,
    *own.ROUTES,
    *query.ROUTES,
    *devices.ROUTES,
    *invocations.ROUTES,
    *egress_endpoints.ROUTES,
    *service_certificates.ROUTES,
    *join.ROUTES,
    *server_join.ROUTES,
    *rotation.ROUTES,
    *report.ROUTES,
    *secrets.ROUTES,
    *made_images.ROUTES,
    *usage.ROUTES,
    *bulk.ROUTES,
    *events.ROUTES,
    *kinds.ROUTES,
    *search.ROUTES,
    *stream.ROUTES,
    *summary.ROUTES,
    *table.ROUTES,
    *network.ROUTES,
    *topology.ROUTES,
    *log.ROUTES,
    *trace.ROUTES,
    *site.ROUTES,
    Route("GET", "/v1/openapi.json", _describe_api, "This document"),
)


@dataclass
class _Node:
    """A place in the tree of ``ROUTES``, whose branches are the parts of paths."""

    routes: dict[str, Route] = field(default_factory=dict)  # that end here, by method
    words: dict[str, _Node] = field(default_factory=dict)
    any: _Node | None = None  # behind {NAME}
    verbs: dict[str, _Node] = field(default_factory=dict)  # behind {NAME}:VERB

    def grow(self, part: str) -> _Node:
        name, _, verb = part.partition(":")
        if not name.startswith("{"):
            return self.words.setdefault(part, _Node())
        if verb:
            return self.verbs.setdefault(verb, _Node())
        self.any = self.any or _Node()
        return self.any


def _plant(routes: Iterable[Route]) -> _Node:
    tree = _Node()
    for route in routes:
        node = tree
        for part in route.path.split("/")[1:]:
            node = node.grow(part)
        node.routes[route.method] = route
    return tree


def _walk(segments: list[str]) -> tuple[_Node, list[str]] | None:
    """Find where one of ``ROUTES`` has this path, and what stands for its names. Raises NotFound for a name that no object can
    have."""
    node, given = _TREE, list[str]()
    for segment in segments:
        name, _, verb = segment.partition(":")
        if (below := node.words.get(segment)) is None:
            if (below := node.verbs.get(verb)) is not None:
                read_target(segments[1:])
                segment = name
            elif (below := node.any) is None:
                return None
            given.append(segment)
        node = below
    return (node, given) if node.routes else None


_TREE = _plant(ROUTES)
