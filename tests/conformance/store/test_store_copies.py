"""A store copied into another engine while it is written: equal, continued by numbers that never came, or not there at all."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hand_clock import HandClock

from weft.contracts.store import AtRevision, Compacted, Delete, LeaseHeld, PreconditionFailed, Put, Refill, Store
from weft.objects.errors import StoreUnavailable, Unavailable
from weft.store.copy import StoreCopy
from weft.store.etcd import EtcdRefill, EtcdStore
from weft.store.sqlite import SqliteRefill, SqliteStore

_prefixes = itertools.count()


class Place:
    """Where a copy goes: ``refill`` and ``open`` are of the same store."""

    def __init__(self, refill: Callable[[], Refill], store: Callable[[], Store]) -> None:
        self.refill, self.store = refill, store


@pytest.fixture(params=["sqlite", "etcd"])
def place(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> Place:
    if request.param == "sqlite":
        (tmp_path / "copy").mkdir()
        path = tmp_path / "copy" / "store.db"
        return Place(lambda: SqliteRefill(path), lambda: SqliteStore(path, clock))
    server, prefix = request.getfixturevalue("etcd"), f"/copy/{next(_prefixes)}"
    at = [server.endpoint]
    return Place(
        lambda: EtcdRefill(at, clock, prefix=prefix, rivals=["controllers"]),
        lambda: EtcdStore(at, clock, prefix=prefix),
    )


@pytest.fixture
async def copied(store: Store, place: Place) -> AsyncIterator[Store]:
    """The copy, opened, of a store that was written while it was copied."""
    for n in range(250):
        await store.commit([Put(f"/a/{n:03}", b"x" * n)], idempotency_key=f"key {n}")
    target = place.refill()
    copy = StoreCopy(store, target)
    await copy.begin("copy me")
    assert await copy.catch_up() == 250
    await store.commit([Put("/a/é", b"late"), Delete("/a/007"), Put("/a/008", b"other")])
    assert await copy.catch_up() == 3
    assert await copy.catch_up() == 0
    await copy.finish()
    await target.close()
    opened = place.store()
    await opened.open()
    yield opened
    await opened.close()


async def test_a_copy_is_equal_and_knows_the_idempotency_keys(store: Store, copied: Store) -> None:
    original, copy = await store.list(""), await copied.list("")
    assert [(e.key, e.value) for e in copy.entries] == [(e.key, e.value) for e in original.entries]
    assert sorted(await copied.kept_keys()) == sorted(await store.kept_keys())
    await copied.commit([Put("/twice", b"1")], idempotency_key="key 3")
    assert await copied.get("/twice") is None


async def test_no_number_of_the_original_means_anything_in_the_copy(store: Store, copied: Store) -> None:
    newest = max(entry.revision for entry in (await store.list("")).entries)
    fence = await store.grant("leader", "me", 60)
    assert fence is not None
    entries = (await copied.list("")).entries
    assert min(entry.revision for entry in entries) > newest
    for entry in (await store.list("/a/")).entries[:20]:
        with pytest.raises(PreconditionFailed) as refused:
            await copied.commit([Put(entry.key, b"lost")], [AtRevision(entry.key, entry.revision)])
        assert refused.value.current_revision > newest
    with pytest.raises(PreconditionFailed):
        await copied.commit([Put("/b", b"1")], [LeaseHeld("leader", fence.fence)])
    taken = await copied.grant("leader", "you", 60)
    assert taken is not None and taken.fence > newest
    written = await copied.commit([Put("/b", b"1")], [LeaseHeld("leader", taken.fence)])
    found = await copied.get("/b")
    assert found is not None and found.revision == written > newest
    await copied.commit([Put("/b", b"2")], [AtRevision("/b", written)])


async def test_the_copys_history_begins_with_it(store: Store, copied: Store) -> None:
    with pytest.raises(Compacted):
        await anext(copied.watch("/", (await store.list("/", limit=1)).cursor))
    cursor = (await copied.list("/")).cursor
    revision = await copied.commit([Put("/b", b"1")])
    batch = await anext(copied.watch("/", cursor))
    assert (batch.revision, batch.changes[0].key) == (revision, "/b")
    first = await copied.list("/a/", limit=10)
    second = await copied.list("/a/", limit=10, after=first.next)
    assert len({entry.key for entry in (*first.entries, *second.entries)}) == 20


async def test_a_copy_that_was_spoilt_is_not_taken(store: Store, place: Place) -> None:
    await store.commit([Put("/a", b"1"), Put("/b", b"2")])
    target = place.refill()
    copy = StoreCopy(store, target)
    await copy.begin("copy me")
    await copy.catch_up()
    await target.apply([Put("/b", b"3")])
    with pytest.raises(Unavailable, match="not equal"):
        await copy.finish()
    await target.abandon()
    await target.close()
    again = place.refill()
    assert (await again.inspect()).objects == 0 and (await again.inspect()).note is None
    await again.close()


async def test_a_part_of_a_copy_in_an_etcd_is_no_store(store: Store, place: Place) -> None:
    await store.commit([Put("/a", b"1")])
    target = place.refill()
    if isinstance(target, SqliteRefill):
        pytest.skip("it grows in another file")
    copy = StoreCopy(store, target)
    await copy.begin("copy me")
    await copy.catch_up()
    await target.close()
    with pytest.raises(StoreUnavailable, match="part of a copy"):
        await place.store().open()
    again = place.refill()
    found = await again.inspect()
    assert (found.objects, found.note) == (1, "copy me")
    await again.retire("left me", keep=True)
    with pytest.raises(StoreUnavailable, match="was left"):
        await place.store().open()
    assert (await again.inspect()).objects == 1
    await again.revive()
    opened = place.store()
    await opened.open()
    assert await opened.commit([Put("/b", b"1")]) > 1_000_000_000 and await opened.get("/a") is not None
    await opened.close()
    await again.retire("left me", keep=False)
    assert (await again.inspect()).objects == 0
    await again.close()
