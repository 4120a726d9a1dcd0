"""What the server sends this node: its allocations, its networks' endpoints, the published ports. Level-triggered.

One thread per watch follows the server over lost connections, restarts and forgotten history, and hands each change to
the event loop. Whatever the server answers, a feed only waits and asks again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

import msgspec

from weft.agent.server.client import Server
from weft.client.watch import WatchEvent
from weft.objects.envelope import Envelope
from weft.objects.errors import WeftError

log = logging.getLogger("weft.agent")
RETRY_SECONDS = 5.0  # after an answer that asking again at once can't mend


class Put(msgspec.Struct, frozen=True):
    """The object is there, like this."""

    envelope: Envelope


class Deleted(msgspec.Struct, frozen=True):
    """It was deleted; ``last`` is how it was then."""

    last: Envelope


class Listed(msgspec.Struct, frozen=True):
    """All there is, in the history ``epoch``; what isn't in here may be gone, or forgotten by a restored server."""

    names: frozenset[str]
    epoch: str


Change = Put | Deleted | Listed


class Feed:
    """One watch; ``deliver`` is called in the event loop, in order. ``heard`` is the cursor up to which all was delivered, nothing
    before the first list was."""

    def __init__(
        self,
        server: Server,
        kind: str,
        query: dict[str, str],
        deliver: Callable[[Change], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._server, self._kind, self._query, self._deliver, self._loop = server, kind, query, deliver, loop
        self.heard = ""
        self._ended = threading.Event()
        self._last_problem = ""
        self._present: set[str] = set()
        self._thread = threading.Thread(target=self._follow, name=f"weft-feed-{kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Deliver nothing more; the thread ends with its connection."""
        self._ended.set()

    def _follow(self) -> None:
        while not self._ended.is_set() and not self._server.closed.is_set():
            try:
                self._present.clear()
                for event in self._server.watch(self._kind, self._query, self._log_problem):
                    if self._ended.is_set():
                        return
                    self._read(event)
            except WeftError as problem:
                self._log_problem(problem)
            except Exception:  # a defect here must not leave the node deaf
                log.exception("watch of %s", self._kind)
            self._server.closed.wait(RETRY_SECONDS)

    def _read(self, event: WatchEvent) -> None:
        if self._last_problem:
            self._last_problem = ""
            log.info("watch of %s: the server answers again", self._kind)
        if event.type == "synced":
            self._deliver_soon(Listed(frozenset(self._present), event.cursor.partition(":")[0]), event.cursor)
        elif event.type == "put":
            envelope = event.envelope
            self._present.add(envelope.name)
            self._deliver_soon(Put(envelope), event.cursor)
        elif event.type == "delete":
            self._present.discard(event.object["name"])
            if "spec" in event.object:  # without one it merely was in no later list
                self._deliver_soon(Deleted(event.envelope), event.cursor)

    def _deliver_soon(self, change: Change, cursor: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_over, change, cursor)

    def _hand_over(self, change: Change, cursor: str) -> None:
        if not self._ended.is_set():
            self._deliver(change)
            self.heard = cursor or self.heard

    def _log_problem(self, problem: WeftError) -> None:
        if self._last_problem != problem.message:
            self._last_problem = problem.message
            log.warning("watch of %s: %s (%s)", self._kind, problem.message, problem.hint or "tried again")
