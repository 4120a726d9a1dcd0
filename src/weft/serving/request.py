"""One request as it comes in: its head, and a body that is handed over as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weft.trust.peer import Peer


class BodyLost(Exception):
    """The rest of a request's body won't come."""


class Request:
    """``path`` and ``query`` are as they came on the wire, ASCII; names of ``headers`` are in lower case. ``address`` is the
    other side's, ``host`` the one of this machine that it came to. ``pull`` is called where more of the body is wanted."""

    method = path = query = ""
    is_kept = False  # the connection, after its answer
    expects = False  # to be told that its body is wanted
    came = 0  # bytes of the body
    buffered = 0  # of these, what waits to be read
    held = 0  # and what counts as under way until it is answered
    whole = False  # all of the body is here
    begun = False  # its answer
    answered = False
    dropped = False  # by the server itself: what its answer would be is nobody's interest

    def __init__(self, address: str, host: str, peer: Peer | None, pull: Callable[[], None]) -> None:
        self.address, self.host, self.peer, self.pull = address, host, peer, pull
        self.headers: list[tuple[bytes, bytes]] = []
        self._by_name: dict[bytes, bytes] | None = None
        self._pieces: list[bytes] = []
        self._waiting: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> str:
        """The first of that name, given in lower case; "" if there is none."""
        if self._by_name is None:
            self._by_name = dict(reversed(self.headers))
        found = self._by_name.get(name)
        return found.decode("latin-1") if found is not None else ""

    async def read(self) -> bytes:
        """What has come of the body since; empty at its end. Raises BodyLost."""
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
        """More of the body."""
        self._pieces.append(body)
        self.came += len(body)
        self.buffered += len(body)
        self.held += len(body)
        self.wake()

    def drop(self) -> None:
        """Let go of what came; reading it then raises BodyLost."""
        self.dropped = True
        self._pieces.clear()
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
