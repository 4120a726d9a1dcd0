"""Follows the published ports from a thread, over lost connections and server restarts, and hands them to the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from weft.client.api import Client
from weft.client.watch import WatchEvent
from weft.gateway.published_port.listeners import PortListeners, read_target
from weft.objects.errors import WeftError

log = logging.getLogger("weft.gateway")
RETRY_SECONDS = 5.0


class PublishedPortWatch:
    """Feeds ``published_ports``; ``connect`` gives a client (anew after a refusal: its token may have changed). Made and
    used in the event loop's thread."""

    def __init__(self, connect: Callable[[], Client], published_ports: PortListeners) -> None:
        self._connect, self._published_ports = connect, published_ports
        self._client: Client | None = None
        self._closed = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._present: set[str] = set()
        self._troubled = ""
        self._thread = threading.Thread(target=self._follow, name="weft-published-ports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Hang up; the thread ends."""
        self._closed.set()
        if self._client is not None:
            self._client.close()

    def _follow(self) -> None:
        while not self._closed.is_set():
            self._present.clear()
            try:
                self._client = self._connect()
                for event in self._client.watch_forever("publishedport", on_trouble=self._trouble):
                    if self._closed.is_set():
                        return
                    self._troubled = ""
                    self._read(event)
            except (WeftError, OSError) as problem:
                self._trouble(problem)
            self._closed.wait(RETRY_SECONDS)

    def _read(self, event: WatchEvent) -> None:
        if self._loop.is_closed():
            return
        if event.type == "put":
            envelope = event.envelope
            self._present.add(envelope.name)
            self._loop.call_soon_threadsafe(self._published_ports.put, envelope.name, read_target(envelope))
        elif event.type == "delete":
            name = str(event.object["name"])
            self._present.discard(name)
            self._loop.call_soon_threadsafe(self._published_ports.put, name, None)
        elif event.type == "synced":
            self._loop.call_soon_threadsafe(self._published_ports.keep_only, frozenset(self._present))

    def _trouble(self, problem: WeftError | OSError) -> None:
        if str(problem) != self._troubled:
            self._troubled = str(problem)
            log.warning("published ports: %s", problem)
