"""Get and list: whole objects as stored, put into the answer without being decoded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from weft.api.admission.refusals import not_found
from weft.api.auth.authorise import authorise_read
from weft.api.auth.ownership import find_listed, find_own
from weft.api.auth.served_devices import find_served
from weft.api.context import ApiContext
from weft.api.object.narrowing import find_narrowing, pick_shared
from weft.api.request.call import JSON, Call, read_count, read_flag, stored_answer
from weft.api.request.if_match import is_known
from weft.api.request.target import Target
from weft.contracts.store import Entry, Page, Store
from weft.kinds.fields.path import read_path
from weft.kinds.parts.sharing import is_shared, read_shares
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, decode_envelope, show_revision
from weft.objects.errors import InvalidInput
from weft.objects.identity import kind_prefix, object_key
from weft.objects.selector import Fields, parse_selector
from weft.serving.answer import Answer

Match = Callable[[bytes], bool]
_PAGE = 500
_ON_THE_LOOP = 200  # more objects than this are encoded in a thread
_MOST = 10_000
_ONE_NAME = re.compile(r"name==?([a-z0-9]([-a-z0-9]*[a-z0-9])?)")
_encoder = msgspec.json.Encoder()


async def get(context: ApiContext, call: Call, target: Target) -> Answer:
    """``GET`` on an object."""
    name, actor = target.require_name(), call.actor
    sees_all = actor.permits(target.reading, None)  # as most who ask do: the rest of the checks is for the others
    if not sees_all:
        await authorise_read(context, actor, target.kind, target.project, name, {})
    call.query()
    entry = await context.store.get(target.key)
    if entry is None:
        await refuse_unknown_project(context, target.project)
        raise not_found(target.kind, name, target.project)
    own = None if sees_all else find_own(actor, target.kind, "get")
    if own is not None and not own(entry.value):
        raise not_found(target.kind, name, target.project)
    if is_known(call, entry.revision):
        return Answer(304, headers=(("etag", f'"{entry.revision}"'),))
    narrow = None if sees_all else find_narrowing(target.kind, actor, "get")
    return stored_answer(narrow(entry.value) if narrow else entry.value, entry.revision)


async def list_(context: ApiContext, call: Call, target: Target) -> Answer:
    """``GET`` on a collection: one page of one instant."""
    names = await authorise_read(context, call.actor, target.kind, target.project, None, call.loose_query)
    shared = ["shared"] if target.kind.is_shareable else []
    query = call.query(*target.kind.selectors, *shared, "limit", "continue")
    if call.actor.kind != "person":
        return await _list(context, call, target, query, names)
    async with context.lists.take(call.actor):
        answer = await _list(context, call, target, query, names)
    return context.lists.hold(call.actor, answer)


async def _list(context: ApiContext, call: Call, target: Target, query: dict[str, str], names: str | None) -> Answer:
    if read_flag(query, "shared"):
        return await _list_shared(context, target, query)
    own = await find_served(context, call.actor, target.kind) or find_listed(call.actor, target.kind, target.project)
    prefix, match = read_selection(target, names, query, own)
    limit = read_count(query, "limit", 0, _MOST)
    after = query.get("continue") or None
    if own is not None and limit and call.actor.kind == "person":
        page = await _list_own(context.store, prefix, limit, after, own)
    else:
        page = await context.store.list(prefix, limit=limit, after=after)
    if not page.entries:
        await refuse_unknown_project(context, target.project)
    entries, narrow = page.entries, find_narrowing(target.kind, call.actor, "list")
    if narrow is not None:
        entries = [Entry(entry.key, narrow(entry.value), entry.revision) for entry in entries]
    if len(entries) > _ON_THE_LOOP:
        body = await asyncio.to_thread(_encode, entries, match, page.cursor, page.next)
    else:
        body = _encode(entries, match, page.cursor, page.next)
    return Answer(200, body, JSON)


async def _list_own(store: Store, prefix: str, limit: int, after: str | None, own: Match) -> Page:
    """A page of what is the reader's own. It ends with such an object, since the key that it ends with is in its continuation."""
    found: list[Entry] = []
    while True:
        page = await store.list(prefix, limit=_PAGE, after=after)
        found += await asyncio.to_thread(lambda entries: [one for one in entries if own(one.value)], page.entries)
        if len(found) > limit:
            return Page(found[:limit], page.cursor, page.continue_after(found[limit - 1].key))
        if page.next is None:
            return Page(found, page.cursor)
        after = page.next


async def _list_shared(context: ApiContext, target: Target, query: dict[str, str]) -> Answer:
    """List what other projects share with the project: of each object what users of it need, on one page, whose key tells of
    nothing else."""
    if target.project is None:
        raise InvalidInput(
            "shared: it takes a project", field="shared", hint=f"GET /v1/projects/PROJECT/{target.kind.plural}?shared=1"
        )
    await refuse_unknown_project(context, target.project)
    match, after, cursor = _read_match(target.kind, query), None, ""
    items: list[Envelope] = []
    while True:
        page = await context.store.list(kind_prefix(target.kind.name), limit=_PAGE, after=after)
        cursor = cursor or page.cursor
        items += await asyncio.to_thread(_pick_shared, target, page.entries, match)
        if page.next is None:
            return Answer(200, _encoder.encode({"items": items, "cursor": cursor, "continue": None}), JSON)
        after = page.next


def _pick_shared(target: Target, entries: Sequence[Entry], match: Match | None) -> list[Envelope]:
    found = []
    for entry in entries:
        whole = decode_envelope(entry.value, entry.revision)
        if whole.project == target.project or not is_shared(read_shares(whole.spec), target.project):
            continue
        shown = pick_shared(target.kind, whole)
        if match is None or match(_encoder.encode(shown)):  # of what is shown: a selector finds out no more
            found.append(shown)
    return found


def read_selection(
    target: Target, names: str | None, query: dict[str, str], own: Match | None = None
) -> tuple[str, Match | None]:
    """The store prefix and the test of a list or watch, for an actor that may see names that begin with ``names`` (None: all) and
    objects that pass ``own``. Raises InvalidInput for a bad selector."""
    match = _both(own, _read_match(target.kind, query))
    one = _ONE_NAME.fullmatch(query.get("fields", ""))
    narrowed = names or (one[1] if one and (target.kind.scope == "fabric" or target.project) else "")
    return target.prefix + narrowed, match


async def refuse_unknown_project(context: ApiContext, project: str | None) -> None:
    """Raise NotFound if the project of the URL doesn't exist."""
    if project is not None and await context.store.get(object_key("project", None, project)) is None:
        raise not_found(BY_NAME["project"], project, None)


def _read_match(kind: Kind, query: dict[str, str]) -> Match | None:
    def read(path: str, values: Sequence[str]) -> tuple[str, list[str]]:
        known, place = read_path(kind, path)
        return known, [place.read(value, path) for value in values]

    labels, fields = query.get("labels", ""), query.get("fields", "")
    if not labels and not fields:
        return None
    by_label = parse_selector(labels, "labels") if labels else None
    by_field = parse_selector(fields, "fields", read) if fields else None

    def match(value: bytes) -> bool:
        if by_label is not None and not by_label(_labels.decode(value).labels):
            return False
        return by_field is None or by_field(Fields(msgspec.json.decode(value)))

    return match


def _both(one: Match | None, other: Match | None) -> Match | None:
    if one is None or other is None:
        return one or other
    return lambda value: one(value) and other(value)


class _Labels(msgspec.Struct):
    labels: dict[str, str] = {}


_labels = msgspec.json.Decoder(_Labels)


def _encode(entries: Sequence[Entry], match: Match | None, cursor: str, follow: str | None) -> bytes:
    items = [
        msgspec.Raw(show_revision(entry.value, entry.revision))
        for entry in entries
        if match is None or match(entry.value)
    ]
    body: dict[str, Any] = {"items": items, "cursor": cursor, "continue": follow}
    return _encoder.encode(body)
