"""How much of the server one person's lists take: few at once, and so many bytes that the person hasn't read yet.

Long lists are made in threads, of which there are few: those of one person wait for each other, not others for them. A slow reader
holds bytes, no turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weft.objects.errors import Throttled
from weft.objects.quantity import format_bytes
from weft.serving.answer import Answer
from weft.serving.protocol import PIECE_BYTES
from weft.trust.credentials import Actor

AT_ONCE = 2  # of one person
MOST_WAITING = 30  # of one person: requests in hand are bounded for all together
MOST_BYTES = 64 << 20  # of one person's lists that weren't read to their end
SMALL_BYTES = 256 << 10  # a body up to this size isn't counted


class _UserTurns:
    """One person's."""

    def __init__(self) -> None:
        self.free = asyncio.Semaphore(AT_ONCE)
        self.users = 0  # that have a turn or wait for one
        self.bytes = 0


class ListTurns:
    """Turns by the person's name; of a person with nothing under way nothing is kept. Nodes' lists are small,
    and have no bounds."""

    def __init__(self) -> None:
        self._people: dict[str, _UserTurns] = {}

    @asynccontextmanager
    async def take(self, actor: Actor) -> AsyncIterator[None]:
        """A turn to make a list; waits for the person's others. Raises Throttled if too many wait, or too much wasn't read."""
        turns = self._people.setdefault(actor.name, _UserTurns())
        if turns.users >= AT_ONCE + MOST_WAITING or turns.bytes >= MOST_BYTES:
            what = f"{format_bytes(turns.bytes)} of lists" if turns.bytes >= MOST_BYTES else f"{turns.users} lists"
            raise Throttled(
                f"{actor.name} has {what} under way",
                reason="tooManyLists",
                hint="read those first; a list with limit=500 has pages",
                retry_after_seconds=1,
            )
        turns.users += 1
        try:
            async with turns.free:
                yield
        finally:
            turns.users -= 1
            self._forget(actor.name, turns)

    def hold(self, actor: Actor, answer: Answer) -> Answer:
        """``answer``, whose bytes count until they are read or the client has left."""
        if len(answer.body) <= SMALL_BYTES:
            return answer
        body, answer.body = answer.body, b""
        answer.pieces, answer.length = _Body(self, actor.name, body), len(body)
        return answer

    def count(self, name: str, size: int) -> None:
        """So many bytes more are under way; less than 0: fewer."""
        turns = self._people.setdefault(name, _UserTurns())
        turns.bytes += size
        self._forget(name, turns)

    def _forget(self, name: str, turns: _UserTurns) -> None:
        if not turns.users and not turns.bytes:
            self._people.pop(name, None)


class _Body:
    """A body in pieces."""

    def __init__(self, turns: ListTurns, name: str, body: bytes) -> None:
        self._turns, self._name, self._body, self._at = turns, name, body, 0
        turns.count(name, len(body))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= len(self._body):
            raise StopAsyncIteration
        self._at += PIECE_BYTES
        return self._body[self._at - PIECE_BYTES : self._at]

    async def aclose(self) -> None:
        self._turns.count(self._name, -len(self._body))
        self._body = b""
