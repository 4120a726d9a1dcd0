"""One request as it arrives: its head, and its body piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weft.trust.peer import Peer


class BodyLost(Exception):
    """The rest of a request's body won't come."""


class Request:
    """``address`` is the client's, ``host`` this machine's. ``pull`` is called when more of the body is wanted."""

    method = path = query = ""  # path and query as they came, in ASCII
    is_kept = False  # whether the connection stays after the answer
    expects = False  # waits for 100 Continue
    came = 0  # bytes of the body so far
    buffered = 0  # of these, unread ones
    held = 0  # bytes that count against the server's bound until the answer
    whole = False  # the body is complete
    begun = False  # its answer has begun
    answered = False
    dropped = False  # the server gave it up: its answer is not sent

    def __init__(self, address: str, host: str, peer: Peer | None, pull: Callable[[], None]) -> None:
        self.address, self.host, self.peer, self.pull = address, host, peer, pull
        self.headers: list[tuple[bytes, bytes]] = []  # names in lower case
        self._by_name: dict[bytes, bytes] | None = None
        self._pieces: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> str:
        """The first header of that name (in lower case), or ""."""
        if self._by_name is None:
            self._by_name = dict(reversed(self.headers))
        found = self._by_name.get(name)
        return found.decode("latin-1") if found is not None else ""

    async def read(self) -> bytes:
        """The bytes of the body since the last call; empty at its end. Raises BodyLost."""
        while not self._pieces and not self.whole:
            if self.dropped:
                raise BodyLost
            self._waiting = asyncio.get_running_loop().create_future()
            self.pull()
            await self._waiting
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.buffered = 0
        if not self.whole:
            self.pull()
        return body

    def put(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._pieces.append(body)
        self.came += len(body)
        self.buffered += len(body)
        self.held += len(body)
        self.wake()

    def drop(self) -> None:
        """Discard the body; reading it then raises BodyLost."""
        self.dropped = True
        self._pieces.clear()
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
