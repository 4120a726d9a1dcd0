"""Watches as NDJSON: each change encoded once for all watches without a selector, a bookmark when nothing changes.

Woken by the store. A watch ends when the server stops, when its token isn't valid any more, and in any case after ten
minutes: the client authenticates again.
"""

from __future__ import annotations

import asyncio
import contextlib

from weft.api.auth.authorise import authorise_read
from weft.api.auth.ownership import find_listed
from weft.api.auth.served_devices import find_served
from weft.api.context import ApiContext
from weft.api.object.narrowing import Narrow, find_narrowing
from weft.api.object.read import Match, read_selection, refuse_unknown_project
from weft.api.request.call import Call
from weft.api.request.target import Target
from weft.api.state.watch_lines import encode_change
from weft.api.watch.stream import NDJSON, Feed, Watching
from weft.contracts.store import Batch, Change
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer

_FIRST_SECONDS = 0.25  # the answer waits so long: the store may refuse the cursor


async def watch(context: ApiContext, call: Call, target: Target) -> Answer:
    """``GET …?watch=1&cursor=C`` on a collection."""
    names = await authorise_read(context, call.actor, target.kind, target.project, None, call.loose_query)
    query = call.query(*target.kind.selectors, "watch", "cursor", "limit")
    cursor = query.get("cursor", "")
    if not cursor:
        raise InvalidInput("a watch needs a cursor", field="cursor", hint="list first: the answer has one")
    own = await find_served(context, call.actor, target.kind) or find_listed(call.actor, target.kind, target.project)
    prefix, match = read_selection(target, names, query, own)
    await refuse_unknown_project(context, target.project)
    narrow = find_narrowing(target.kind, call.actor, "list")
    batches = context.store.watch(prefix, cursor)
    feed = Feed(context, batches, cursor, lambda batch: _lines(context, batch, match, narrow))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_SECONDS):
            await feed.woken.wait()
    if feed.refusal is not None:
        raise feed.refusal
    if call.actor.kind == "node" and query.get("node") == call.actor.id:  # it follows what is placed on it
        feed.leave = context.orders.bells.listen(call.actor.id, feed.ring)
    return Answer(200, headers=NDJSON, pieces=Watching(context, call, feed))


def _lines(context: ApiContext, batch: Batch, match: Match | None, narrow: Narrow | None) -> bytes:
    if match is None and narrow is None:
        last = batch.changes[-1] if batch.changes else None
        return b"".join(context.lines.encode(batch, change, last=change is last) for change in batch.changes)
    changes = batch.changes if narrow is None else [_narrowed(change, narrow) for change in batch.changes]
    selected = [found for change in changes if (found := _select(change, match)) is not None]
    return b"".join(
        encode_change(batch, type_, value, last=number == len(selected))
        for number, (type_, value) in enumerate(selected, start=1)
    )


def _narrowed(change: Change, narrow: Narrow) -> Change:
    value, previous = (None if each is None else narrow(each) for each in (change.value, change.previous))
    return Change(change.key, value, previous)


def _select(change: Change, match: Match | None) -> tuple[str, bytes] | None:
    """The event of a watch with a selector: an object that stops matching is DELETED for its reader."""
    if change.value is not None and (match is None or match(change.value)):
        return "put", change.value
    if change.previous is not None and (match is None or match(change.previous)):
        return "delete", change.previous
    return None
