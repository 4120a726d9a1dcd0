"""Sends what the node's store of logs has of a workload, and follows it: also at the node that the workload migrates to, from the
line that comes next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from weft.agent.logs.collector import LogCollector
from weft.agent.state.allocation import LocalAllocation
from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import Departed, GuestLocator
from weft.agent.stream.logs import CHECK_SECONDS, send_gone
from weft.contracts.clock import Clock
from weft.kinds.parts.stream_verbs import LogsInput
from weft.objects.errors import InvalidInput
from weft.protocol.frames import FrameType, encode_exit, encode_json
from weft.telemetry.logs.lines import encode_lines
from weft.telemetry.logs.match import Matcher, await_matcher
from weft.telemetry.logs.query import Range, StoredLine, read_last, read_lines

MOST_TAIL = 100_000
_LINES_AT_ONCE = 1_000  # then a gateway hears how far it has come
_reading = asyncio.Semaphore(4)  # of old lines, which takes memory


class Collected(msgspec.Struct, frozen=True):
    """The lines of one source; of a workload, ``local`` and ``where`` say where it is. ``ends``: it is followed until it has ended,
    not only until it has gone."""

    logs: LogCollector
    uid: str
    what: str
    local: LocalAllocation | None = None
    where: GuestLocator | None = None
    ends: bool = False


async def follow_collected(
    stream: Stream, of: Collected, given: LogsInput, came_to: int | None, clock: Clock, asker: str
) -> None:
    """Send the lines that are asked for, as JSON; with ``given.follow``, on until the client or the workload goes. ``came_to``: the
    number of the next line, of a gateway that can continue on another node (-1: it begins; None: it can't); ``asker``: the
    person. Raises InvalidInput."""
    if given.tail > MOST_TAIL:
        raise InvalidInput(f"tail must be at most {MOST_TAIL}", field="tail")
    if given.follow and given.until:
        raise InvalidInput("until can't be given together with follow: what follows is later", field="until")
    matcher = await await_matcher(given.filter, given.regex, clock, asker)
    try:
        await _Sender(stream, of, given, came_to, clock, matcher).run()
    finally:
        if matcher is not None:
            matcher.close()


class _Sender:
    def __init__(
        self,
        stream: Stream,
        of: Collected,
        given: LogsInput,
        came_to: int | None,
        clock: Clock,
        matcher: Matcher | None,
    ) -> None:
        self._stream, self._of, self._given = stream, of, given
        self._came_to, self._clock, self._matcher = came_to, clock, matcher
        self._store = of.logs.store

    async def run(self) -> None:
        resumes = self._came_to is not None and self._came_to >= 0
        position = self._came_to if resumes and self._came_to is not None else 0
        if not resumes:
            position = self._store.next_number(self._of.uid)
            await self._send_old(position)
        await self._announce(position)
        watching = asyncio.ensure_future(self._until_gone())
        gone: Departed | None = None
        ended = False
        try:
            while self._given.follow and not watching.done():
                end = self._store.next_number(self._of.uid)
                if end > position:
                    await self._send(Range(self._of.uid, first=position, end=end), announces=True)
                    position = end
                    await self._announce(position)
                elif gone is not None:
                    await send_gone(self._stream, gone, position, self._came_to)
                    return
                elif ended:
                    break
                elif (gone := await self._inspect()) is None:
                    ended = self._of.ends and self._of.where is not None and self._of.where.has_ended()
                    if ended and self._of.local is not None:
                        await self._of.logs.drain(self._of.local)
                    else:
                        await self._clock.sleep(CHECK_SECONDS)
        finally:
            watching.cancel()
        await self._stream.send(encode_exit(0))

    async def _send_old(self, end: int) -> None:
        """Send the lines collected so far, up to the line with the number ``end``."""
        now = self._clock.now()
        since = int((now - self._given.since) * 1e6) if self._given.since else 0
        until = int((now - self._given.until) * 1e6) if self._given.until else 0
        asked = Range(self._of.uid, end=end, since=since, until=until)
        if not end or not self._given.tail:
            return
        async with _reading:
            if self._given.tail < 0:
                await self._send(asked)
                return
            found = await asyncio.to_thread(read_last, self._store, asked, self._matcher, self._given.tail)
        await self._send_lines(found)

    async def _send(self, asked: Range, *, announces: bool = False) -> None:
        if self._matcher is not None:
            self._matcher.begin()
        blocks = read_lines(self._store, asked, self._matcher)
        while (lines := await asyncio.to_thread(_next, blocks)) is not None:
            for at in range(0, len(lines), _LINES_AT_ONCE if announces else len(lines)):
                await self._send_lines(sent := lines[at : at + _LINES_AT_ONCE] if announces else lines)
                if announces:
                    await self._announce(sent[-1].number + 1)

    async def _send_lines(self, lines: list[StoredLine]) -> None:
        data = await asyncio.to_thread(encode_lines, lines, self._of.what)
        await self._stream.send_data(FrameType.DATA_OUT, data)

    async def _announce(self, position: int) -> None:
        """Announce the line from which a gateway goes on at another node."""
        if self._came_to is not None:
            await self._stream.send(encode_json(FrameType.SESSION, {"printed": position}))

    async def _inspect(self) -> Departed | None:
        return None if self._of.where is None else await self._of.where.inspect()

    async def _until_gone(self) -> None:
        while await self._stream.receive() is not None:
            pass


def _next(blocks: Iterator[list[StoredLine]]) -> list[StoredLine] | None:
    return next(blocks, None)
