"""The body of a watch: changes as the store sends them, all waiting ones in one piece; a bookmark when nothing changes.

Thousands of watches last for minutes each: a watch costs two tasks, and nothing while nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from weft.api.auth.authenticate import identify_again
from weft.api.context import ApiContext
from weft.api.request.call import Call
from weft.api.request.problem import describe_problem
from weft.api.state.watch_lines import WatchLine, encode_line
from weft.contracts.store import Batch
from weft.objects.errors import NotAuthenticated, WeftError

BOOKMARK_SECONDS = 8.0
NDJSON = (("content-type", "application/x-ndjson"),)
_LONGEST_SECONDS = 600.0
# A timer may go off so much before its time; otherwise it would be set again and again for the rest.
_EARLY_SECONDS = 0.001
_AHEAD_BYTES = 65_536  # of lines that wait for their reader; beyond it nothing more is taken from the store


class Feed:
    """Makes lines of a watch's batches. ``woken`` is set when there is news: lines, or the end. ``leave`` is called at the end."""

    def __init__(
        self, context: ApiContext, batches: AsyncGenerator[Batch, None], cursor: str, encode: Callable[[Batch], bytes]
    ) -> None:
        self.woken = asyncio.Event()
        self.cursor = cursor
        self.changed_at = context.clock.elapsed()  # time of the store's last batch
        self.problem: Exception | None = None
        self.leave: Callable[[], None] = lambda: None
        self._rung = False
        self._clock, self._batches, self._encode = context.clock, batches, encode
        self._lines: list[bytes] = []
        self._bytes = 0
        self._taken = asyncio.Event()
        self._task = asyncio.ensure_future(self._run())

    @property
    def refusal(self) -> WeftError | None:
        """The error if the store sent no batch at all."""
        return self.problem if isinstance(self.problem, WeftError) and not self._lines else None

    @property
    def ended(self) -> bool:
        return self._task.done()

    def take(self) -> bytes:
        """The lines that wait."""
        lines = b"".join(self._lines)
        if self._rung:
            self._rung = False
            lines += encode_line(WatchLine("bookmark", cursor=self.cursor, report=True))
        self._lines.clear()
        self._bytes = 0
        self._taken.set()
        return lines

    def ring(self) -> None:
        """Tell the reader, a node, that its report is awaited."""
        self._rung = True
        self.woken.set()

    async def close(self) -> None:
        self.leave()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with aclosing(self._batches) as batches:
                async for batch in batches:
                    self.cursor, self.changed_at = batch.cursor, self._clock.elapsed()
                    lines = self._encode(batch)
                    if not lines:
                        continue
                    self._lines.append(lines)
                    self._bytes += len(lines)
                    self.woken.set()
                    if self._bytes > _AHEAD_BYTES:
                        self._taken.clear()
                        await self._taken.wait()
        except Exception as problem:  # the reader gets it after the lines before it
            self.problem = problem
        finally:
            asyncio.get_running_loop().call_soon(self.woken.set)


class Watching:
    """The lines of ``feed`` until its end, the server's end, or ten minutes; closed when their reader has left."""

    def __init__(self, context: ApiContext, call: Call, feed: Feed) -> None:
        self._context, self._call, self._feed = context, call, feed
        self._began = self._spoke = self._asked = context.clock.elapsed()
        self._is_over = False
        self._version: object = None  # the rights that it was let in with may have gone since: they are asked for first
        context.streams[feed.woken] = call.actor
        feed.woken.set()

    def __aiter__(self) -> Watching:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        try:
            lines = await self._next()
        except WeftError as error:
            self._is_over = True
            return encode_line(WatchLine("error", error=describe_problem(error, self._call.request_id)))
        if lines is None:
            raise StopAsyncIteration
        return lines

    async def aclose(self) -> None:
        self._context.streams.pop(self._feed.woken, None)
        await self._feed.close()

    async def _next(self) -> bytes | None:
        """The next lines; None at the end."""
        context, feed = self._context, self._feed
        while not context.stopping.is_set() and context.clock.elapsed() - self._began < _LONGEST_SECONDS:
            due = min(self._spoke, self._asked) + BOOKMARK_SECONDS
            quiet = await wait(feed.woken, due - context.clock.elapsed())
            feed.woken.clear()
            if not await self._is_still_allowed():
                return None
            if lines := feed.take():
                self._spoke = context.clock.elapsed()
                return lines
            if feed.ended:
                if feed.problem is not None:
                    raise feed.problem
                return None
            if quiet:
                self._spoke = context.clock.elapsed()
                return await self._make_bookmark()
        return None

    async def _is_still_allowed(self) -> bool:
        """Check the reader's rights every few seconds, and when they may have changed. False if they have: the reader asks again.
        Raises NotAuthenticated if the server would no longer let the reader in."""
        now, version = self._context.clock.elapsed(), self._context.rights_version
        if now - self._asked < BOOKMARK_SECONDS - _EARLY_SECONDS and version == self._version:
            return True
        self._asked, self._version = now, version
        actor = await identify_again(self._context, self._call.actor)
        if actor is None:
            what = "certificate" if self._call.actor.kind == "node" else "token"
            raise NotAuthenticated(f"the {what} is not valid any more")
        return actor == self._call.actor

    async def _make_bookmark(self) -> bytes:
        cursor = self._context.pulse.settled_since(self._feed.changed_at) or self._feed.cursor
        return encode_line(WatchLine("bookmark", cursor=cursor))


async def wait(woken: asyncio.Event, seconds: float) -> bool:
    """Wait until ``woken`` is set; True if only the time ran out."""
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
