"""The journal over HTTP: a page of it, or new events as they come, line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection

import msgspec

from weft.api.auth.authenticate import identify_again
from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.object.read import refuse_unknown_project
from weft.api.request.call import Call, json_answer, read_count, read_flag, read_seconds
from weft.api.route import Route, refer_to
from weft.api.servers.away import AWAY, name_away
from weft.api.servers.event_copies import MOST, OwnEvents
from weft.api.watch.stream import BOOKMARK_SECONDS, NDJSON
from weft.client.server.endpoints import JOURNAL_HEADER
from weft.serving.answer import Answer
from weft.telemetry.journal import Record
from weft.trust.credentials import Actor

_PARAMETERS = ("since", "journal", "at", "follow", "object", "project", "limit")
_PAGE = 100
_MOST = 1000
_POLL_SECONDS = 0.3  # other processes write the journal too, and it can't wake anyone
_encoder = msgspec.json.Encoder()


async def events(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/events``: with ``since`` the events after that id; without it the newest. ``project``: only of objects there. Ids
    are those of one server's journal, which the header JOURNAL_HEADER names: who goes on at another server gives that as
    ``journal``, and the time of the last event as ``at``. Another server gets this one's own events."""
    if call.actor.kind == "server":
        return await _send_own(context, call)
    require_person(call.actor, "read the journal")
    query = call.query(*_PARAMETERS)
    only = query.get("project", "")
    if only:
        call.actor.require("event:list", only, "read the journal")
        await refuse_unknown_project(context, only)
    else:
        call.actor.require_somewhere("event:list", "read the journal")
    projects = _choose(call.actor, only)
    since = read_count(query, "since", 0, 2**53) if query.get("since") else None
    limit = read_count(query, "limit", 0, _MOST) or (_PAGE if since is None else _MOST)
    about = query.get("object", "")
    journal = await asyncio.to_thread(context.journal.read_id)
    if since is not None and query.get("journal", journal) != journal:
        since = await asyncio.to_thread(context.journal.find_place, read_seconds(query, "at", 0.0))
    headers = ((JOURNAL_HEADER, journal), *name_away(context.event_copies.away))
    if read_flag(query, "follow"):
        pieces = _follow(context, call, since, about, only, limit)
        return Answer(200, headers=(*NDJSON, *headers), pieces=pieces)
    records = await context.journal.read_soon(since=since, about=about, projects=projects, limit=limit)
    answer = json_answer({"items": records, "away": context.event_copies.away})
    answer.headers += headers
    return answer


async def _send_own(context: ApiContext, call: Call) -> Answer:
    query = call.query("since", "limit")
    since, limit = read_count(query, "since", 0, 2**53), read_count(query, "limit", MOST, MOST)
    records = await context.journal.read_soon(since=since, limit=limit, own=True)
    return json_answer(OwnEvents(await asyncio.to_thread(context.journal.read_id), records))


async def _follow(
    context: ApiContext, call: Call, since: int | None, about: str, only: str, limit: int
) -> AsyncGenerator[bytes, None]:
    spoke = asked = context.clock.elapsed()
    version: object = None  # what it was let in with may have gone since: it is asked for first
    projects = _choose(call.actor, only)
    if since is None:
        reached = await asyncio.to_thread(context.journal.find_newest)
        records = await context.journal.read_soon(about=about, projects=projects, limit=limit)
    else:
        reached, records = since, []
    while not context.stopping.is_set():
        now = context.clock.elapsed()
        if now - asked > BOOKMARK_SECONDS or version != context.rights_version:
            asked, version = now, context.rights_version
            if await identify_again(context, call.actor) != call.actor:
                return
        if records:
            yield b"".join(_encoder.encode(record) + b"\n" for record in records)
            reached, spoke = max(reached, *(record.id for record in records)), now
        elif now - spoke > BOOKMARK_SECONDS:
            yield b"\n"  # keeps the connection alive
            spoke = now
        else:
            await context.clock.sleep(_POLL_SECONDS)
        records = await context.journal.read_soon(since=reached, about=about, projects=projects, limit=_MOST)


def _choose(actor: Actor, only: str) -> Collection[str] | None:
    """The projects whose events are shown; None: all, and those of the fabric's own objects."""
    return [only] if only else actor.find_projects("event:list")


ROUTES = (
    Route(
        "GET",
        "/v1/events",
        events,
        "What happened; with follow=1 as NDJSON",
        permission="event:list",
        where="own",
        query=_PARAMETERS,
        answers={
            "type": "object",
            "properties": {"items": {"type": "array", "items": refer_to(Record)}, "away": AWAY},
        },
        names=(Record,),
    ),
)
