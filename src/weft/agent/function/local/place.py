"""The address where a node serves functions itself. It opens as soon as that can be: an agent whose port is taken, whose machine
has the address only later, or whose key is missing does all its other work meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from weft.agent.function.local.functions import LocalFunctions
from weft.contracts.clock import Clock
from weft.objects.errors import WeftError
from weft.serving.server import HttpServer

RETRY_SECONDS = 5.0
log = logging.getLogger("weft.agent")


class Place:
    """``open_server`` makes a server whose socket is bound and that isn't started yet; it raises WeftError or OSError. It is tried
    at once, and from ``start`` on again until it succeeds."""

    def __init__(self, functions: LocalFunctions, open_server: Callable[[], HttpServer], clock: Clock) -> None:
        self._functions, self._open_server, self._clock = functions, open_server, clock
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
            self._server = self._open_server()
        except WeftError as failed:
            problem, hint = failed.message, failed.hint or ""
        except OSError as failed:
            problem = failed.strerror or str(failed)
        if problem and problem != self._problem:
            log.warning("functions are not served at this node: %s", "; ".join(filter(None, (problem, hint))))
        elif self._problem and not problem:
            log.info("functions are served at %s", self._functions.address)
        self._problem = problem
        self._functions.note_place(problem)
