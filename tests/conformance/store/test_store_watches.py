from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from weft.contracts.store import Batch, Change, Compacted, Delete, Put, Store
from weft.objects.errors import InvalidInput, StoreUnavailable


async def cursor_of(store: Store) -> str:
    return (await store.list("/", limit=1)).cursor


async def take(store: Store, prefix: str, cursor: str, count: int) -> list[Batch]:
    """The first ``count`` batches after ``cursor``."""
    batches: list[Batch] = []
    async with asyncio.timeout(20), aclosing(store.watch(prefix, cursor)) as watch:
        async for batch in watch:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


async def test_a_watch_delivers_each_commit_whole_and_only_its_prefix(store: Store) -> None:
    cursor = await cursor_of(store)
    first = await store.commit([Put("/a/2", b"2"), Put("/b/1", b"no"), Put("/a/1", b"1")])
    await store.commit([Put("/b/2", b"no")])
    second = await store.commit([Delete("/a/1"), Put("/a/2", b"3")])
    batches = await take(store, "/a/", cursor, 2)
    assert [batch.revision for batch in batches] == [first, second]
    assert batches[0].changes == [Change("/a/2", b"2"), Change("/a/1", b"1")]
    assert batches[1].changes == [Change("/a/1", None, b"1"), Change("/a/2", b"3", b"2")]


async def test_what_happens_while_watching_is_what_is_found_in_the_log(store: Store) -> None:
    cursor = await cursor_of(store)
    live = asyncio.create_task(take(store, "/a/", cursor, 30))
    for n in range(30):
        await store.commit([Put(f"/a/{n % 4}", b"%d" % n), Delete(f"/a/{(n + 1) % 4}"), Put("/b", b"")])
        await asyncio.sleep(0)
    assert await live == await take(store, "/a/", cursor, 30)


async def test_a_watch_resumes_right_after_the_batch_whose_cursor_it_is_given(store: Store) -> None:
    cursor = await cursor_of(store)
    for n in range(6):
        await store.commit([Put("/a", b"%d" % n)])
    batches = await take(store, "/", cursor, 6)
    for position, batch in enumerate(batches[:-1]):
        assert await take(store, "/", batch.cursor, 5 - position) == batches[position + 1 :]


async def test_a_watch_from_a_lists_cursor_misses_nothing_that_came_after_the_list(store: Store) -> None:
    await store.commit([Put(f"/k/{n}", b"old") for n in range(5)])
    page = await store.list("/k/", limit=2)
    await store.commit([Put("/k/4", b"new")])
    last = await store.list("/k/", after=page.next)
    assert last.entries[-1].value == b"old"
    [batch] = await take(store, "/k/", last.cursor, 1)
    assert batch.changes == [Change("/k/4", b"new", b"old")]


async def test_watches_begun_amid_writers_have_no_gap_and_no_repeat(store: Store) -> None:
    cursor = await cursor_of(store)
    commits, writers = 60, 6

    async def write(writer: int) -> None:
        for n in range(commits):
            await store.commit([Put(f"/w/{writer}/{n}", b""), Put("/else", b"")])
            await asyncio.sleep(0)

    async def begin_late(after: int) -> list[Batch]:
        head = await take(store, "/w/", cursor, after)
        return head + await take(store, "/w/", head[-1].cursor, commits * writers - after)

    *seen, _ = await asyncio.gather(
        *(begin_late(n) for n in (1, 5, 40, 200, 350)), asyncio.gather(*(write(n) for n in range(writers)))
    )
    for batches in seen:
        assert [batch.revision for batch in batches] == sorted({batch.revision for batch in batches})
        keys = [batch.changes[0].key for batch in batches]
        assert len(set(keys)) == len(keys) == commits * writers
        for writer in range(writers):
            own = [key for key in keys if key.startswith(f"/w/{writer}/")]
            assert own == [f"/w/{writer}/{n}" for n in range(commits)]


async def test_many_watches_each_see_what_concerns_them(store: Store) -> None:
    cursor = await cursor_of(store)
    prefixes = ["", "/", "/allocation/", "/allocation/n1/", "/allocation/n2/", "/allocation/n1/x", "/all"]
    expected = {"": 3, "/": 3, "/allocation/": 2, "/allocation/n1/": 1, "/allocation/n2/": 1, "/allocation/n1/x": 1}
    watches = {prefix: asyncio.create_task(take(store, prefix, cursor, expected.get(prefix, 3))) for prefix in prefixes}
    await asyncio.sleep(0.05)
    await store.commit([Put("/allocation/n1/x", b"1")])
    await store.commit([Put("/allocation/n2/y", b"2")])
    await store.commit([Put("/all", b"3"), Put("/b", b"4")])
    for prefix, watch in watches.items():
        batches = await watch
        assert [change.key for batch in batches for change in batch.changes] == [
            key for key in ("/allocation/n1/x", "/allocation/n2/y", "/all", "/b") if key.startswith(prefix)
        ]


async def test_a_cursor_older_than_what_is_kept_is_compacted(store: Store) -> None:
    old = await cursor_of(store)
    for n in range(10):
        await store.commit([Put("/a", b"%d" % n)])
    recent = (await take(store, "/", old, 6))[-1].cursor
    await store.compact(4)
    with pytest.raises(Compacted):
        await take(store, "/", old, 1)
    assert [batch.changes[0].value for batch in await take(store, "/", recent, 4)] == [b"6", b"7", b"8", b"9"]
    await store.compact(0)
    with pytest.raises(Compacted):
        await take(store, "/", recent, 1)


async def test_the_newest_cursor_outlives_any_compaction(store: Store) -> None:
    await store.commit([Put("/a", b"1")])
    cursor = await cursor_of(store)
    await store.compact(0)
    await store.commit([Put("/a", b"2")])
    [batch] = await take(store, "/", cursor, 1)
    assert batch.changes == [Change("/a", b"2", b"1")]


async def test_a_cursor_from_elsewhere_or_ahead_of_the_store_is_compacted(store: Store) -> None:
    await store.commit([Put("/a", b"1")])
    cursor = await cursor_of(store)
    epoch, _, revision = cursor.partition(":")
    for foreign in ("", "x", "0:0", f"other:{revision}", f"{epoch}:", f"{epoch}:+1", f"{epoch}:{int(revision) + 1}"):
        with pytest.raises(Compacted):
            await take(store, "/", foreign, 1)
    with pytest.raises(InvalidInput):
        await take(store, "no-slash", cursor, 1)


async def test_a_reader_who_pauses_for_long_still_gets_everything(store: Store) -> None:
    """More than any queue holds waits for it: it must be read again from the log, without gap or repeat."""
    cursor = await cursor_of(store)
    commits = 700
    value = b"x" * 100_000
    async with asyncio.timeout(60), aclosing(store.watch("/a", cursor)) as watch:
        await store.commit([Put("/a", b"first")])
        seen = [await anext(watch)]
        for n in range(commits):
            await store.commit([Put("/a", b"%d " % n + value)])
        while len(seen) <= commits:
            seen.append(await anext(watch))
    numbers = [int(batch.changes[0].value.split()[0]) for batch in seen[1:] if batch.changes[0].value]
    assert numbers == list(range(commits))


async def test_a_reader_who_falls_behind_the_log_is_told_so(store: Store) -> None:
    cursor = await cursor_of(store)
    value = b"x" * 100_000
    async with asyncio.timeout(60), aclosing(store.watch("/a", cursor)) as watch:
        await store.commit([Put("/a", b"first")])
        await anext(watch)
        for _ in range(700):
            await store.commit([Put("/a", value)])
        await store.compact(0)
        with pytest.raises(Compacted):
            for _ in range(700):
                await anext(watch)


async def test_closing_the_store_ends_its_watches_with_an_error(store: Store) -> None:
    cursor = await cursor_of(store)
    await store.commit([Put("/a", b"1")])
    async with asyncio.timeout(20), aclosing(store.watch("/", cursor)) as watch:
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        await store.close()
        with pytest.raises(StoreUnavailable):
            await waiting


async def test_a_closed_store_refuses_everything(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    with pytest.raises(StoreUnavailable):
        await store.commit([Put("/a", b"")])
    with pytest.raises(StoreUnavailable):
        await store.list("/")
    with pytest.raises(StoreUnavailable):
        await store.grant("leader", "a", 10)
    with pytest.raises(StoreUnavailable):
        await take(store, "/", "x:1", 1)
