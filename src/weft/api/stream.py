"""The body of a watch: what the store tells goes out as it comes, all that waits in one piece; a bookmark when it is quiet.

Thousands of watches last for minutes each: one costs two tasks, and nothing while nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from weft.api.authenticate import is_still_let_in
from weft.api.call import Call
from weft.api.doors import Doors
from weft.api.lines import Line, encode_line
from weft.api.problem import describe_problem
from weft.contracts.store import Batch
from weft.objects.errors import NotAuthenticated, WeftError

BOOKMARK_SECONDS = 8.0
MEDIA_TYPE = "application/x-ndjson"
_LONGEST_SECONDS = 600.0
_AHEAD_BYTES = 65_536  # of lines that wait for their reader; beyond it nothing more is taken from the store


class Feed:
    """Makes lines of a watch's batches. ``woken`` is set when there is news: lines, or the end."""

    def __init__(
        self, doors: Doors, batches: AsyncGenerator[Batch, None], cursor: str, encode: Callable[[Batch], bytes]
    ) -> None:
        self.woken = asyncio.Event()
        self.cursor = cursor
        self.told_at = doors.clock.elapsed()  # when the store told something last
        self.problem: Exception | None = None
        self._clock, self._batches, self._encode = doors.clock, batches, encode
        self._lines: list[bytes] = []
        self._bytes = 0
        self._room = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    @property
    def refusal(self) -> WeftError | None:
        """Why the store told nothing at all."""
        return self.problem if isinstance(self.problem, WeftError) and not self._lines else None

    @property
    def ended(self) -> bool:
        return self._task.done()

    def take(self) -> bytes:
        """The lines that wait."""
        lines = b"".join(self._lines)
        self._lines.clear()
        self._bytes = 0
        self._room.set()
        return lines

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with aclosing(self._batches) as batches:
                async for batch in batches:
                    self.cursor, self.told_at = batch.cursor, self._clock.elapsed()
                    lines = self._encode(batch)
                    if not lines:
                        continue
                    self._lines.append(lines)
                    self._bytes += len(lines)
                    self.woken.set()
                    if self._bytes > _AHEAD_BYTES:
                        self._room.clear()
                        await self._room.wait()
        except Exception as problem:  # the reader's to hear, after the lines before it
            self.problem = problem
        finally:
            asyncio.get_running_loop().call_soon(self.woken.set)


class WatchResponse(Response):
    """Sends what ``feed`` brings until its end, the doors' end, the reader's, or ten minutes."""

    def __init__(self, doors: Doors, call: Call, feed: Feed) -> None:
        self._doors, self._call, self._feed = doors, call, feed
        self.status_code = 200
        self.media_type = MEDIA_TYPE
        self.background = None
        self.init_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        woken = self._feed.woken
        leaving = asyncio.ensure_future(_leave(receive, woken))
        self._doors.streams.add(woken)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._follow(leaving, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._doors.streams.discard(woken)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await self._feed.close()

    async def _follow(self, leaving: asyncio.Future[None], send: Send) -> None:
        doors, feed = self._doors, self._feed
        began = spoke = doors.clock.elapsed()
        try:
            while not leaving.done() and not doors.stopping.is_set():
                quiet = await _wait(feed.woken, spoke + BOOKMARK_SECONDS - doors.clock.elapsed())
                feed.woken.clear()
                now = doors.clock.elapsed()
                if lines := feed.take():
                    spoke = now
                    await send({"type": "http.response.body", "body": lines, "more_body": True})
                elif feed.ended:
                    if feed.problem is not None:
                        raise feed.problem
                    return
                elif quiet:
                    spoke = now
                    await send({"type": "http.response.body", "body": await self._make_bookmark(), "more_body": True})
                if now - began >= _LONGEST_SECONDS:
                    return
        except WeftError as error:
            line = encode_line(Line("error", error=describe_problem(error, self._call.request_id)))
            await send({"type": "http.response.body", "body": line, "more_body": True})

    async def _make_bookmark(self) -> bytes:
        """Raises NotAuthenticated if the reader would no longer be let in."""
        if not await is_still_let_in(self._doors, self._call.actor):
            raise NotAuthenticated("the token is not valid any more")
        cursor = self._doors.pulse.settled_since(self._feed.told_at) or self._feed.cursor
        return encode_line(Line("bookmark", cursor=cursor))


async def _leave(receive: Receive, woken: asyncio.Event) -> None:
    """Return once the reader has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    woken.set()


async def _wait(woken: asyncio.Event, seconds: float) -> bool:
    """Return once ``woken`` is set; True if it was only the time that ran out."""
    quiet = False

    def ring() -> None:
        nonlocal quiet
        quiet = not woken.is_set()
        woken.set()

    timer = asyncio.get_running_loop().call_later(max(0.0, seconds), ring)
    try:
        await woken.wait()
        return quiet
    finally:
        timer.cancel()
