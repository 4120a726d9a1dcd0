"""Two API servers over one store, and requests that go to them in turn. The second one's copies of the store may stand still."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.api_lab import ApiLab
from tests.scenario.people.test_people import wait_until

from weft.client import Client
from weft.contracts.clock import SystemClock
from weft.contracts.store import Batch, Store
from weft.kinds.server import SERVER, ServerSpec, ServerStatus
from weft.objects.envelope import merge_part
from weft.objects.identity import object_key
from weft.store.memory import MemoryStore
from weft.telemetry.metrics.database import Database

DAY = 86_400.0


class LateStore:
    """``store``, whose watches bring nothing while ``held``: as those of a server whose etcd member is slow."""

    def __init__(self, store: Store) -> None:
        self._store, self.flows = store, asyncio.Event()
        self.flows.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def watch(self, prefix: str, cursor: str) -> AsyncGenerator[Batch, None]:
        async with aclosing(self._store.watch(prefix, cursor)) as batches:
            async for batch in batches:
                await self.flows.wait()
                yield batch


class TwoServers:
    """``first`` and ``second`` are the servers; the second one's watches can be held back (``lagging``). ``histories`` finds the
    database that each keeps for metrics."""

    def __init__(
        self,
        folder: Path,
        store: Store | None = None,
        histories: tuple[Callable[[], Database], Callable[[], Database]] | None = None,
    ) -> None:
        self.store = store or MemoryStore(SystemClock())
        for name in ("s1", "s2"):
            (folder / name).mkdir()
        of_first, of_second = histories or (None, None)
        self.first = ApiLab(folder / "s1", self.store, find_metrics=of_first, keep_metrics=DAY)
        self._late = LateStore(self.store)
        late: Any = self._late
        self.second = ApiLab(folder / "s2", late, beside=self.first, find_metrics=of_second, keep_metrics=DAY)
        self.servers = (self.first, self.second)
        self.admin = self.in_turn(self.first.client)

    def announce(self, **addresses: str) -> None:
        """Let the store say that both serve, and others at these addresses ("": not now); both know it afterwards."""
        places = {one.name: one.url for one in self.servers} | addresses
        for name, address in places.items():
            status = ServerStatus(phase="Ready" if address else "NotReady", address=address)
            found = self.first.stored(object_key(SERVER.name, None, name)) or SERVER.make(name, ServerSpec(), 0.0)
            found.status = merge_part(found.status, status)
            self.first.put(found)
        for one in self.servers:
            wanted = {name: place for name, place in sorted(places.items()) if name != one.name}
            wait_until(lambda one=one, wanted=wanted: one.api.servers.list_others(one.name) == wanted)  # type: ignore[misc]

    @contextmanager
    def lagging(self) -> Iterator[None]:
        """While within, the second server sees only what it reads."""
        self.first.loop.call_soon_threadsafe(self._late.flows.clear)
        try:
            yield
        finally:
            self.first.loop.call_soon_threadsafe(self._late.flows.set)

    def of_each(self, client: Client) -> list[Client]:
        """The same person at either server."""
        found = []
        for server in self.servers:
            one = server.connect(msgspec.structs.replace(client.context, server=server.context.server))
            one.project = client.project
            found.append(one)
        return found

    def in_turn(self, client: Client) -> InTurn:
        return InTurn(self.of_each(client))

    def close(self) -> None:
        self.second.close()
        self.first.close()


class InTurn:
    """A client of both servers: each call goes to the other one than the last."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = itertools.cycle(clients)

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._clients), name)
