"""A store takes another's place while commits, reads and watches go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.store import Compacted, Precondition, Put, Write
from weft.objects.errors import InUse, StoreUnavailable, TimedOut, Unavailable
from weft.store.memory import MemoryStore
from weft.store.remote import RemoteStore, StoreServer
from weft.store.switch import StoreSwitch, pause


class Slow(MemoryStore):
    """Commits, and its opening, take as long as ``gate`` is shut."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.opened = False

    async def open(self) -> None:
        await self.gate.wait()
        self.opened = True

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        await self.gate.wait()
        return await super().commit(writes, preconditions, idempotency_key=idempotency_key)


class Two:
    """A switch from ``old`` to ``new``; ``remembered`` is what it has made durable."""

    def __init__(self) -> None:
        self.old, self.new = Slow(), Slow()
        self.remembered: list[str] = []
        self.switch = StoreSwitch("old", self.old, lambda url: self.new, self.remembered.append, SystemClock())


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    two = Two()
    yield two
    await two.switch.close()


async def settle() -> None:
    await asyncio.sleep(0.02)


async def test_commits_wait_for_the_switch_and_go_to_the_new_store(two: Two) -> None:
    two.old.gate.clear()
    first = asyncio.create_task(two.switch.commit([Put("/a", b"1")]))
    await settle()
    holding = asyncio.create_task(two.switch.hold_commits(5))
    await settle()
    assert not holding.done()  # one is in hand
    two.old.gate.set()
    await holding
    assert first.done()
    second = asyncio.create_task(two.switch.commit([Put("/b", b"2")]))
    await settle()
    assert not second.done() and await two.switch.get("/a") is not None  # reads go on
    watch = two.switch.watch("/", (await two.switch.list("/")).cursor)
    waiting = asyncio.ensure_future(anext(watch))
    await settle()
    pausing = asyncio.create_task(pause(two.switch, 60, SystemClock()))
    await pause(two.switch, 0, SystemClock())
    assert not pausing.done()
    await two.switch.switch("new")
    await pausing  # whoever has a lease grants it in the new store now
    await second
    assert two.remembered == ["new"] and two.switch.url == "new"
    assert (await two.new.get("/b"), await two.new.get("/a")) != (None, None)
    with pytest.raises(StoreUnavailable):
        await waiting
    with pytest.raises(StoreUnavailable):
        await two.old.get("/a")  # it was closed


async def test_a_cursor_of_the_old_store_is_refused_by_the_new_one(two: Two) -> None:
    cursor = (await two.switch.list("/")).cursor
    await two.switch.hold_commits(5)
    await two.switch.switch("new")
    with pytest.raises(Compacted):
        await anext(two.switch.watch("/", cursor))


async def test_a_hold_ends_in_time_and_then_nothing_is_switched(two: Two) -> None:
    await two.switch.hold_commits(0.05)
    with pytest.raises(InUse, match="held already"):
        await two.switch.hold_commits(0.05)
    await two.switch.commit([Put("/a", b"1")])
    with pytest.raises(TimedOut, match="not held any more"):
        await two.switch.switch("new")
    assert await two.old.get("/a") is not None and two.remembered == []


async def test_a_store_that_opens_too_slowly_is_not_switched_to(two: Two) -> None:
    two.new.gate.clear()
    await two.switch.hold_commits(0.1)
    with pytest.raises(TimedOut, match="not opened in time"):
        await two.switch.switch("new")
    await two.switch.commit([Put("/a", b"1")])
    assert await two.old.get("/a") is not None and (two.remembered, two.new.opened) == ([], False)


async def test_a_switch_that_cannot_be_remembered_is_none() -> None:
    def refuse(url: str) -> None:
        raise OSError(28, "No space left on device")

    old, new = MemoryStore(SystemClock()), MemoryStore(SystemClock())
    switch = StoreSwitch("old", old, lambda url: new, refuse, SystemClock())
    await switch.hold_commits(5)
    with pytest.raises(StoreUnavailable, match="No space left"):
        await switch.switch("new")
    await switch.commit([Put("/a", b"1")])
    assert await old.get("/a") is not None and switch.url == "old"
    await switch.close()


async def test_a_client_that_dies_lets_commits_go_on(two: Two, tmp_path: Path) -> None:
    server = StoreServer(two.switch, tmp_path / "s")
    await server.start()
    client, other = RemoteStore(tmp_path / "s", SystemClock()), RemoteStore(tmp_path / "s", SystemClock())
    await client.hold_commits(30)
    commit = asyncio.create_task(other.commit([Put("/a", b"1")]))
    await settle()
    assert not commit.done()
    with pytest.raises(InUse):
        await other.hold_commits(30)
    await client.close()
    await asyncio.wait_for(commit, 2)
    assert two.remembered == []
    await other.hold_commits(30)
    await other.switch("new")
    await other.commit([Put("/b", b"1")])
    assert await two.new.get("/b") is not None
    await other.close()
    await server.close()


async def test_a_store_without_a_switch_says_so(tmp_path: Path) -> None:
    server = StoreServer(MemoryStore(SystemClock()), tmp_path / "s")
    await server.start()
    client = RemoteStore(tmp_path / "s", SystemClock())
    with pytest.raises(Unavailable, match="can't be exchanged"):
        await client.hold_commits(1)
    await client.close()
    await server.close()
