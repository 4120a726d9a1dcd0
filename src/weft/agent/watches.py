"""The agent's watches of the server's objects: its allocations, the snapshots that lie on it, the published ports, and the
endpoints of the networks that it is in. The latter two are passed to the network executor. Level-triggered.

One thread per watch follows the server over lost connections, restarts and forgotten history, and passes each change to
the event loop. Whatever the server answers, a feed only waits and asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Set
from functools import partial

import msgspec

from weft.agent.network.executor import NetworkExecutor
from weft.agent.network.plan import read_endpoint, read_forward
from weft.agent.server.client import Server
from weft.agent.state.service import read_service
from weft.agent.state.table import AllocationTable
from weft.client.watch import WatchEvent
from weft.objects.envelope import Envelope
from weft.objects.errors import WeftError

log = logging.getLogger("weft.agent")
LIST_SECONDS = 5.0
RETRY_SECONDS = 5.0  # after an answer that an immediate retry can't change


class Put(msgspec.Struct, frozen=True):
    """The object exists, as ``envelope``."""

    envelope: Envelope


class Deleted(msgspec.Struct, frozen=True):
    """The object was deleted."""

    last: Envelope  # its last state


class Listed(msgspec.Struct, frozen=True):
    """The complete list. Any other object may be deleted, or forgotten by a restored server."""

    names: frozenset[str]
    epoch: str  # the server's history


Change = Put | Deleted | Listed


class Feed:
    """One watch; ``deliver`` is called in the event loop, in order, and ``awaited`` when the server awaits this node's report."""

    def __init__(
        self,
        server: Server,
        kind: str,
        query: dict[str, str],
        deliver: Callable[[Change], None],
        loop: asyncio.AbstractEventLoop,
        awaited: Callable[[], None] = lambda: None,
    ) -> None:
        self._server, self._kind, self._query, self._deliver, self._loop = server, kind, query, deliver, loop
        self._awaited = awaited
        self.cursor = ""  # up to which all is delivered; "" before the first list
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
            except Exception:  # a defect must not end the watch
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
            if "spec" in event.object:  # without it, the object was merely missing from a later list
                self._deliver_soon(Deleted(event.envelope), event.cursor)
        elif event.report and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._awaited)

    def _deliver_soon(self, change: Change, cursor: str) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_over, change, cursor)

    def _hand_over(self, change: Change, cursor: str) -> None:
        if not self._ended.is_set():
            self._deliver(change)
            self.cursor = cursor or self.cursor

    def _log_problem(self, problem: WeftError) -> None:
        if self._last_problem != problem.message:
            self._last_problem = problem.message
            log.warning("watch of %s: %s (%s)", self._kind, problem.message, problem.hint or "tried again")


class ServerWatches:
    """One feed for each watch, until ``end``. ``listed`` passes on the server's whole lists of networks' addresses, for the node's
    own endpoints."""

    def __init__(self, server: Server, network: NetworkExecutor, table: AllocationTable) -> None:
        self._server, self._network, self._table = server, network, table
        self.listed: asyncio.Queue[tuple[str, Set[str]]] = asyncio.Queue()
        self._feeds: dict[str, Feed] = {}
        self._networks: dict[str, asyncio.Event] = {}  # by uid: set once the server's list of its endpoints has arrived

    def follow(
        self,
        key: str,
        kind: str,
        query: dict[str, str],
        deliver: Callable[[Change], None],
        awaited: Callable[[], None] = lambda: None,
    ) -> None:
        feed = Feed(self._server, kind, query, deliver, asyncio.get_running_loop(), awaited)
        self._feeds[key] = feed
        feed.start()

    def cursor_of(self, key: str) -> str:
        """The cursor up to which the watch ``key`` is delivered; "" before its first list."""
        return self._feeds[key].cursor if key in self._feeds else ""

    def follow_published_ports(self) -> None:
        self.follow("published ports", "publishedport", {}, self._on_published_port)

    def follow_networks(self) -> None:
        """Keep one feed of endpoints for each network that is needed here, and no others."""
        needed = self._table.networks() | self._network.handover.networks
        for uid in sorted(self._networks.keys() - needed):
            self._feeds.pop(uid).end()
            del self._networks[uid]
        for uid in sorted(needed - self._networks.keys()):
            self._networks[uid] = asyncio.Event()
            self.follow(uid, "endpoint", {"network": uid}, partial(self._on_endpoint, uid))

    async def wait_for_network(self, uid: str) -> None:
        """Wait for the first list of a followed network's endpoints, LIST_SECONDS at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIST_SECONDS):
                await self._networks[uid].wait()

    def end(self, key: str) -> None:
        self._feeds.pop(key).end()

    def end_all(self) -> None:
        for feed in self._feeds.values():
            feed.end()

    def _on_published_port(self, change: Change) -> None:
        if isinstance(change, Listed):
            self._network.fade_forwards({_port_of(name) for name in change.names})
        elif isinstance(change, Put):
            self._network.put_forward(*_port_of(change.envelope.name), read_forward(change.envelope))
        else:
            self._network.put_forward(*_port_of(change.last.name), None)

    def _on_endpoint(self, network_uid: str, change: Change) -> None:
        if isinstance(change, Listed):
            self._network.fade_neighbours(network_uid, {_address_of(name) for name in change.names})
            if network_uid in self._networks:
                self._networks[network_uid].set()
            self.listed.put_nowait((network_uid, {_address_of(name) for name in change.names}))
        elif isinstance(change, Put):
            address = _address_of(change.envelope.name)
            self._network.put_neighbour(network_uid, address, read_endpoint(change.envelope))
            self._network.service_addresses.put(network_uid, address, read_service(change.envelope))
        else:
            self._network.put_neighbour(network_uid, _address_of(change.last.name), None)
            self._network.service_addresses.put(network_uid, _address_of(change.last.name), None)


def _port_of(published_port: str) -> tuple[int, str]:
    protocol, _, port = published_port.partition("-")
    return int(port), protocol


def _address_of(endpoint: str) -> str:
    return endpoint.partition(".")[2]
