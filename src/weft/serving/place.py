"""A server that opens as soon as it can: its port may be taken, its machine may get the address only later, its key may be missing.
The process does all its other work meanwhile. Woken by time until it is open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.objects.errors import WeftError
from weft.serving.server import HttpServer

RETRY_SECONDS = 5.0
log = logging.getLogger("weft.serving")


class DeferredServer:
    """``open_server`` makes a server whose sockets are bound and that isn't started yet; it raises WeftError, OSError. It is tried
    in the constructor, and from ``start`` on again until it succeeds. ``note`` gets why it failed, and "" when it is open; ``what``
    names it in the log."""

    def __init__(
        self,
        open_server: Callable[[], HttpServer],
        clock: Clock,
        what: str,
        note: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self._open_server, self._clock, self._what, self._note = open_server, clock, what, note
        self._server: HttpServer | None = None
        self._problem = ""
        self._opening: asyncio.Task[None] | None = None
        self._open()

    def start(self) -> None:
        """Call it on the loop."""
        self._opening = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._server is not None:
            await self._server.close()

    async def _keep(self) -> None:
        while self._server is None:
            await self._clock.sleep(RETRY_SECONDS)
            self._open()
        self._server.start()

    def _open(self) -> None:
        problem, hint = "", ""
        try:
            self._server = self._listen()
        except WeftError as failed:
            problem, hint = failed.message, failed.hint or ""
        except OSError as failed:
            problem = failed.strerror or str(failed)
        if problem and problem != self._problem:
            log.warning("%s can't be served yet: %s", self._what, "; ".join(filter(None, (problem, hint))))
        elif self._problem and not problem:
            log.info("%s can be served now", self._what)
        self._problem = problem
        self._note(problem)

    def _listen(self) -> HttpServer:
        server = self._open_server()
        try:
            for sock in server.sockets:
                sock.listen()  # now: another program may have bound the same port, too, and listen first
        except OSError:
            for sock in server.sockets:
                sock.close()
            raise
        return server
