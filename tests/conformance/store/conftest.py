"""Every engine that keeps the store contract, opened afresh for each test. A new engine is one more function here."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_server import PROGRAM, EtcdServer
from hand_clock import HandClock
from tests.shelf import tmp_path_factory as tmp_path_factory

from weft.contracts.store import Store
from weft.store.etcd import EtcdStore
from weft.store.memory import MemoryStore
from weft.store.remote import RemoteStore, StoreServer
from weft.store.sqlite import SqliteStore


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


async def open_memory(stack: AsyncExitStack, clock: HandClock, folder: Path) -> Store:
    return MemoryStore(clock, keep_revisions=100_000)


async def open_sqlite(stack: AsyncExitStack, clock: HandClock, folder: Path) -> Store:
    return SqliteStore(folder / "store.db", clock)


async def open_remote(stack: AsyncExitStack, clock: HandClock, folder: Path) -> Store:
    served = SqliteStore(folder / "store.db", clock)
    await served.open()
    stack.push_async_callback(served.close)
    server = StoreServer(served, folder / "store.sock")
    await server.start()
    stack.push_async_callback(server.close)
    return RemoteStore(folder / "store.sock", clock)


ENGINES: dict[str, Callable[[AsyncExitStack, HandClock, Path], Awaitable[Store]]] = {
    "memory": open_memory,
    "sqlite": open_sqlite,
    "remote": open_remote,
}
_numbers = itertools.count()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    if PROGRAM is None:
        pytest.skip("etcd is not installed (apt-get install etcd-server)")
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=[*ENGINES, "etcd"])
async def store(request: pytest.FixtureRequest, clock: HandClock, tmp_path: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        opened: Store
        if request.param == "etcd":
            server: EtcdServer = request.getfixturevalue("etcd")
            opened = EtcdStore([server.endpoint], clock, prefix=f"/test/{next(_numbers)}")
        else:
            opened = await ENGINES[request.param](stack, clock, tmp_path)
        await opened.open()
        stack.push_async_callback(opened.close)
        yield opened
