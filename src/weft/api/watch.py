"""Watches as NDJSON: each change encoded once for all who watch without a selector, a bookmark when it is quiet.

Woken by the store. A watch ends when the doors stop, when its token is worth nothing any more, and in any case after
ten minutes: who goes on is asked again who he is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from weft.api.authenticate import is_still_let_in
from weft.api.call import Call
from weft.api.doors import Doors
from weft.api.lines import Line, encode_change, encode_line
from weft.api.problem import describe_problem
from weft.api.read import SELECTORS, Match, known_prefix, read_selection, refuse_unknown_project
from weft.api.target import Target
from weft.contracts.store import Batch, Change
from weft.objects.errors import CursorGone, InvalidInput, NotAuthenticated, WeftError

BOOKMARK_SECONDS = 8.0
MEDIA_TYPE = "application/x-ndjson"
_LONGEST_SECONDS = 600.0
_FIRST_SECONDS = 0.25  # how long a cursor gets to prove gone before the answer begins


async def watch(doors: Doors, call: Call, target: Target) -> Response:
    """``GET …?watch=1&cursor=C`` on a collection."""
    query = call.query(*SELECTORS, *known_prefix(target), "watch", "cursor", "limit")
    cursor = query.get("cursor", "")
    if not cursor:
        raise InvalidInput("a watch needs a cursor", field="cursor", hint="list first: the answer has one")
    prefix, match = await read_selection(doors, call, target, query)
    await refuse_unknown_project(doors, target)
    batches = doors.store.watch(prefix, cursor)
    first: asyncio.Future[Batch] = asyncio.ensure_future(anext(batches))
    await asyncio.wait([first], timeout=_FIRST_SECONDS)
    if first.done() and isinstance(first.exception(), WeftError):
        await batches.aclose()
        raise first.exception() or CursorGone("the cursor is gone")
    return StreamingResponse(_follow(doors, call, batches, first, match, cursor), 200, None, MEDIA_TYPE)


async def _follow(
    doors: Doors,
    call: Call,
    batches: AsyncGenerator[Batch, None],
    following: asyncio.Future[Batch],
    match: Match | None,
    cursor: str,
) -> AsyncIterator[bytes]:
    began = told = doors.clock.elapsed()
    stopping = asyncio.ensure_future(doors.stopping.wait())
    try:
        while not stopping.done() and doors.clock.elapsed() - began < _LONGEST_SECONDS:
            await asyncio.wait(
                _both(following, stopping), timeout=BOOKMARK_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if following.done():
                batch = following.result()
                following = asyncio.ensure_future(anext(batches))
                cursor, told = batch.cursor, doors.clock.elapsed()
                lines = _lines(doors, batch, match)
                if lines:
                    yield lines
            elif not stopping.done():
                if not await is_still_let_in(doors, call.actor):
                    raise NotAuthenticated("the token is not valid any more")
                cursor = doors.pulse.settled_since(told) or cursor
                yield encode_line(Line("bookmark", cursor=cursor))
    except WeftError as error:
        yield encode_line(Line("error", error=describe_problem(error, call.request_id)))
    except StopAsyncIteration:
        return
    finally:
        stopping.cancel()
        following.cancel()
        await asyncio.gather(following, stopping, return_exceptions=True)
        await batches.aclose()


def _both(*futures: asyncio.Future[Any]) -> list[asyncio.Future[Any]]:
    return list(futures)


def _lines(doors: Doors, batch: Batch, match: Match | None) -> bytes:
    if match is None:
        return b"".join(doors.lines.encode(batch, change) for change in batch.changes)
    return b"".join(_selected(batch, change, match) for change in batch.changes)


def _selected(batch: Batch, change: Change, match: Match) -> bytes:
    """The line of a watch with selector: what stops matching is deleted as far as its reader is concerned."""
    if change.value is not None and match(change.value):
        return encode_change(batch, "put", change.value)
    if change.previous is not None and match(change.previous):
        return encode_change(batch, "delete", change.previous)
    return b""
