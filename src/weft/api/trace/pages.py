"""Traces over HTTP: one trace, a list of them, and what nodes bring. A reader sees only spans of objects that he may read: in a
trace with a forged id, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from weft.api.auth.authorise import require_permission, require_person
from weft.api.context import ApiContext
from weft.api.node.join import require_own
from weft.api.request.call import Call, json_answer, read_count, read_seconds
from weft.api.route import Route, Topic
from weft.api.servers.away import AWAY, name_away
from weft.api.servers.merge import ask_others
from weft.api.trace.node_spans import is_guest_s, read_spans
from weft.contracts.trace.context import is_trace_id
from weft.contracts.trace.span import Span
from weft.kinds.allocation import ALLOCATION, AllocationSpec
from weft.kinds.function import FUNCTION
from weft.kinds.permissions import PERMISSIONS
from weft.objects.envelope import decode_envelope, decode_part
from weft.objects.errors import InvalidInput, NotFound, StoreUnavailable, Unavailable
from weft.objects.identity import object_key
from weft.protocol.traces import SpansAnswer, SpansInput
from weft.serving.answer import Answer
from weft.telemetry.traces.otlp import to_otlp
from weft.telemetry.traces.store import Summary, TraceStore, merge_summaries
from weft.trust.credentials import Actor

DEFAULT_SINCE_SECONDS = 3600.0
_PAGE, _MOST = 50, 1000
_MOST_BODY_BYTES = 4 << 20


class TraceList(msgspec.Struct):
    """Newest first. ``away``: servers whose spans are missing."""

    items: list[Summary]
    away: list[str] = []


class _Document(msgspec.Struct, rename="camel"):
    resource_spans: list[msgspec.Raw] = []


async def get(context: ApiContext, call: Call, trace: str) -> Answer:
    """``GET /v1/traces/{id}``: the spans that the actor may see, as OTLP has them. Raises NotFound, also where it may see none."""
    require_person(call.actor, "read traces")
    call.actor.require_somewhere("trace:get", "read traces")
    call.query()
    if not is_trace_id(trace):
        raise InvalidInput(f"{trace[:40]!r} is not the id of a trace", hint="it has 32 hex digits: weft trace list")
    store, sees = _require_store(context), _make_filter(call.actor, "get")

    def read() -> list[Span]:
        store.gather()
        return [one for one in store.find(trace) if sees(one)]

    found, others = await _read(read), await ask_others(context, call, _Document)
    spans = [*to_otlp(found)["resourceSpans"]] if found else []
    for part in others.found.values():
        spans += part.resource_spans
    if not spans:
        away = f"; away: {', '.join(others.away)}" if others.away else ""
        raise NotFound(
            f"there is no trace {trace}, or none of it is yours to see",
            hint=f"traces are kept for 7 days at most: weft trace list{away}",
        )
    answer = json_answer({"resourceSpans": spans} | ({"away": others.away} if others.away else {}))
    answer.headers += name_away(others.away)
    return answer


async def list_(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/traces``: those of which something began after ``since``, newest first."""
    if asked := call.loose_query.get("project"):
        require_permission(call.actor, "trace:list", asked, "list traces")
    else:
        require_person(call.actor, "list traces")
        call.actor.require_somewhere("trace:list", "list traces")
    query = call.query("project", "since", "slow", "object", "limit")
    now = context.clock.now()
    since = read_seconds(query, "since", now - DEFAULT_SINCE_SECONDS)
    slow = read_seconds(query, "slow", 0.0)
    limit = read_count(query, "limit", 0, _MOST) or _PAGE
    store, may_see = _require_store(context), _make_filter(call.actor, "list")

    def sees(one: Span) -> bool:
        return (not asked or one.project == asked) and may_see(one)

    def read() -> list[Summary]:
        store.gather()
        return store.search(since, sees, query.get("object", ""))

    found = await _read(read)
    asked_others = {**query, "since": str(since), "slow": "0", "limit": str(_MOST if slow else limit)}
    others = await ask_others(context, call, TraceList, query=lambda _: asked_others)
    merged = merge_summaries([found, *(part.items for part in others.found.values())])
    answer = json_answer(TraceList([one for one in merged if one.seconds >= slow][:limit], others.away))
    answer.headers += name_away(others.away)
    return answer


async def take(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:traces``, by the node itself."""
    uid = call.actor.id
    await require_own(context, call, name)
    call.query()
    store = _require_store(context)
    body = await call.read_body(_MOST_BODY_BYTES)
    try:
        given = msgspec.json.decode(body or b"{}", type=SpansInput)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise InvalidInput(f"the spans can't be read: {problem}") from None
    now = context.clock.now()
    if given.offset is None or not given.spans:
        return json_answer(SpansAnswer(now))
    allowed = context.node_spans.take(uid, len(given.spans))
    spans = read_spans(given.spans[:allowed], f"node/{name}", given.offset)
    known = context.node_spans.known(uid)
    if any(one.about not in known and not _is_function(one) for one in spans):
        known |= await _list_workloads(context, uid)
    spans = [one for one in spans if one.about in known or (_is_function(one) and not is_guest_s(one))]
    if spans:
        await _read(lambda: store.put(spans))
    return json_answer(SpansAnswer(now, len(given.spans) - len(spans)))


def _is_function(one: Span) -> bool:
    """Any node may be sent invocations of any function."""
    return one.about.startswith(f"{FUNCTION.name}/")


async def _list_workloads(context: ApiContext, uid: str) -> set[str]:
    """Those with an allocation on this node: a hostile one would otherwise tell of others'."""
    page = await context.store.list(object_key(ALLOCATION.name, None, f"{uid}."))
    refs = [decode_part(decode_envelope(entry.value).spec, AllocationSpec).workload for entry in page.entries]
    return {f"{of.kind}/{of.project or '-'}/{of.name}" for of in refs}


def _require_store(context: ApiContext) -> TraceStore:
    if context.spans is None:
        raise Unavailable("this server keeps no traces", hint="weft server --traces local", reason="noTraces")
    return context.spans


async def _read(work: Callable[[], list[Span] | list[Summary] | None]) -> list:  # type: ignore[type-arg]
    """Raises StoreUnavailable."""
    try:
        return await asyncio.to_thread(work) or []
    except OSError as problem:
        raise StoreUnavailable(f"the store of traces can't be used: {problem}") from None


def _make_filter(actor: Actor, verb: str) -> Callable[[Span], bool]:
    """Whether the actor may see a span: it may read traces in its project, and objects of the kind that it is about."""
    known: dict[str, bool] = {}

    def sees(one: Span) -> bool:
        kind, _, rest = one.about.partition("/")
        place = f"{kind}/{rest.partition('/')[0]}"
        found = known.get(place)
        if found is None:
            reads, project = f"{kind}:get", one.project
            found = actor.permits(f"trace:{verb}", project)
            found = found and (reads not in PERMISSIONS or actor.permits(reads, project))
            known[place] = found
        return found

    return sees


ROUTES = (
    Route(
        "GET",
        "/v1/traces",
        list_,
        "The newest traces",
        permission="trace:list",
        where="own",
        query=("project", "since", "slow", "object", "limit"),
        answers=TraceList,
        names=(Summary,),
    ),
    Route(
        "GET",
        "/v1/traces/{trace}",
        get,
        "The spans of a trace, as OTLP has them in JSON",
        permission="trace:get",
        where="own",
        answers={
            "type": "object",
            "properties": {"resourceSpans": {"type": "array", "items": {"type": "object"}}, "away": AWAY},
        },
    ),
    Route(
        "POST",
        "/v1/nodes/{name}:traces",
        take,
        "Take the spans that a node has recorded",
        where="nodes",
        topic=Topic("refused", "report", "node", name="{name}"),
        takes=SpansInput,
        answers=SpansAnswer,
    ),
)
