"""What the agent follows of the server's objects: its allocations, published ports, and the endpoints of the networks that it is
in. The latter two go to the network as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Set
from functools import partial

from weft.agent.network.executor import NetworkExecutor
from weft.agent.network.plan import read_endpoint, read_forward
from weft.agent.server.client import Server
from weft.agent.server.watch import Change, Feed, Listed, Put
from weft.agent.state.table import AllocationTable

LIST_SECONDS = 5.0


class ServerWatches:
    """One feed for each thing that is followed, until ``end``. ``listed`` are the server's whole lists of networks' addresses, for
    the node's own endpoints."""

    def __init__(self, server: Server, network: NetworkExecutor, table: AllocationTable) -> None:
        self._server, self._network, self._table = server, network, table
        self.listed: asyncio.Queue[tuple[str, Set[str]]] = asyncio.Queue()
        self._feeds: dict[str, Feed] = {}
        self._networks: dict[str, asyncio.Event] = {}  # by uid: set once the server's list of its endpoints was heard

    def follow(self, key: str, kind: str, query: dict[str, str], deliver: Callable[[Change], None]) -> None:
        feed = Feed(self._server, kind, query, deliver, asyncio.get_running_loop())
        self._feeds[key] = feed
        feed.start()

    def heard(self, key: str) -> str:
        """The cursor up to which all was delivered of what is followed under ``key``, nothing before its first list."""
        return self._feeds[key].heard if key in self._feeds else ""

    def follow_published_ports(self) -> None:
        self.follow("published ports", "publishedport", {}, self._on_published_port)

    def follow_networks(self) -> None:
        """One feed of endpoints for each network that is needed here, and for no others."""
        needed = self._table.networks() | self._network.handover.networks
        for uid in sorted(self._networks.keys() - needed):
            self._feeds.pop(uid).end()
            del self._networks[uid]
        for uid in sorted(needed - self._networks.keys()):
            self._networks[uid] = asyncio.Event()
            self.follow(uid, "endpoint", {"network": uid}, partial(self._on_endpoint, uid))

    async def wait_for_network(self, uid: str) -> None:
        """Until all that the server says of a followed network's endpoints is known; a while at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIST_SECONDS):
                await self._networks[uid].wait()

    def end(self) -> None:
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
        else:
            self._network.put_neighbour(network_uid, _address_of(change.last.name), None)


def _port_of(published_port: str) -> tuple[int, str]:
    protocol, _, port = published_port.partition("-")
    return int(port), protocol


def _address_of(endpoint: str) -> str:
    return endpoint.partition(".")[2]
