"""The writer under pressure: broken requests, a full disk, history that is cut while work goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.store import (
    Absent,
    AtRevision,
    Change,
    Compacted,
    Delete,
    Entry,
    PreconditionFailed,
    Put,
    StoreFull,
)
from weft.objects.errors import StoreUnavailable
from weft.store.sqlite import SqliteStore
from weft.store.sqlite.transaction import Transaction


def rows_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM version").fetchone()[0])


class SlowClock(SystemClock):
    """On which a millisecond goes by between any two looks."""

    def __init__(self) -> None:
        self._looks = 0

    def elapsed(self) -> float:
        self._looks += 1
        return self._looks / 1000


async def test_what_a_long_turn_of_the_loop_asks_for_is_committed_while_it_lasts(tmp_path: Path) -> None:
    """The loop gives nothing up until the file holds something: by a hand-over after the turn it never would."""
    store = SqliteStore(path := tmp_path / "s.db", SlowClock())
    await store.open()
    assert store._running is not None
    while not store._running.writer._idle:
        await asyncio.sleep(0.01)

    async def look() -> int:
        deadline = time.monotonic() + 20
        while not (found := rows_in(path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    commits = [asyncio.create_task(store.commit([Put(f"/k/{n}", b"{}")])) for n in range(20)]
    committed = await asyncio.create_task(look())
    assert 8 <= committed < 20, "all of a turn's first half, and nothing of what came after it"
    assert sorted(await asyncio.gather(*commits)) == list(range(1, 21))
    await store.close()


async def test_a_broken_request_fails_alone_and_the_writer_lives_on(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()

    def break_half_way(transaction: Transaction) -> Any:
        transaction.commit([Put("/half", b"")], [], None)
        raise ZeroDivisionError("unforeseen")

    assert store._running is not None
    writer = store._running.writer
    cursor = (await store.list("/")).cursor
    results = await asyncio.gather(
        store.commit([Put("/a", b"1")]),
        writer.submit(break_half_way, 0),
        store.commit([Put("/a", b"2")], [Absent("/a")]),
        store.commit([Put("/b", b"3")], idempotency_key="b"),
        return_exceptions=True,
    )
    assert results[0] == 1 and results[3] == 2
    assert isinstance(results[1], StoreUnavailable) and isinstance(results[2], PreconditionFailed)
    assert (await store.list("/")).entries == [Entry("/a", b"1", 1), Entry("/b", b"3", 2)]
    async with asyncio.timeout(60), aclosing(store.watch("/", cursor)) as watch:
        assert [(await anext(watch)).revision for _ in range(2)] == [1, 2]
    await store.close()


async def test_a_commit_whose_caller_gave_up_before_it_began_is_not_made(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    busy = [asyncio.ensure_future(store.commit([Put("/busy", b"x" * 200_000)])) for _ in range(300)]
    await asyncio.sleep(0)
    given_up = asyncio.ensure_future(store.commit([Put("/a", b"")]))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(*busy)
    await store.commit([])
    assert await store.get("/a") is None
    await store.close()


async def test_closing_finishes_the_commits_that_were_asked_for(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    asked = [asyncio.ensure_future(store.commit([Put(f"/k/{n}", b"")])) for n in range(600)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*asked) == list(range(1, 601))
    await store.open()
    assert len((await store.list("/k/")).entries) == 600
    await store.close()


async def test_history_is_cut_by_itself_and_keeps_what_was_promised(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db", keep_revisions=50)
    await store.open()
    await store.commit([Put(f"/kept/{n}", b"") for n in range(20)])
    oldest = (await store.list("/", limit=1)).cursor
    cursors = []
    for n in range(1_000):
        revision = await store.commit([Put("/a", b"%d" % n), Delete("/b") if n % 2 else Put("/b", b"")])
        cursors.append(f"{oldest.split(':')[0]}:{revision}")
    async with asyncio.timeout(60), aclosing(store.watch("/", cursors[-51])) as watch:
        assert [(await anext(watch)).changes[0].value for _ in range(50)] == [b"%d" % n for n in range(950, 1_000)]
    for gone in (oldest, cursors[500], cursors[-57]):
        async with aclosing(store.watch("/", gone)) as watch:
            with pytest.raises(Compacted):
                await anext(watch)
    async with asyncio.timeout(60):
        while rows_in(tmp_path / "s.db") > 20 + 2 + 2 * 56:
            await asyncio.sleep(0.01)
    assert len((await store.list("/kept/")).entries) == 20
    await store.close()


async def test_history_of_large_values_is_cut_by_its_size(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db", keep_bytes=1_000_000)
    await store.open()
    await store.commit([Put(f"/kept/{n}", b"x" * 10_000) for n in range(50)])
    revisions = [await store.commit([Put("/a", b"x" * 10_000)]) for _ in range(500)]
    epoch = (await store.list("/a")).cursor.split(":")[0]
    async with asyncio.timeout(60), aclosing(store.watch("/", f"{epoch}:{revisions[-100]}")) as watch:
        assert [(await anext(watch)).revision for _ in range(99)] == revisions[-99:]
    async with aclosing(store.watch("/", f"{epoch}:{revisions[-120]}")) as watch:
        with pytest.raises(Compacted):
            await anext(watch)
    async with asyncio.timeout(60):
        while rows_in(tmp_path / "s.db") > 50 + 1 + 120:
            await asyncio.sleep(0.01)
    assert len((await store.list("/kept/")).entries) == 50
    await store.close()


async def test_after_compaction_only_what_is_there_now_takes_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    for n in range(60):
        await store.commit([Put(f"/k/{k}", b"%d" % n) for k in range(50)])
    await store.commit([Delete(f"/k/{k}") for k in range(40)])
    assert rows_in(tmp_path / "s.db") == 60 * 50 + 40
    await store.compact(0)
    async with asyncio.timeout(60):
        while rows_in(tmp_path / "s.db") != 10:
            await asyncio.sleep(0.01)
    await store.close()
    await store.open()
    assert len((await store.list("/k/")).entries) == 10
    await store.close()


async def fill(store: SqliteStore) -> list[str]:
    """Commit until the store is full; the keys that were acknowledged."""
    made: list[str] = []
    with pytest.raises(StoreFull):
        for n in range(100_000):
            await store.commit([Put(f"/k/{n}/a", b"x" * 40_000), Put(f"/k/{n}/b", b"x" * 40_000)])
            made += [f"/k/{n}/a", f"/k/{n}/b"]
    return made


async def test_a_full_store_writes_nothing_serves_reads_and_recovers(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db", max_bytes=3_000_000)
    await store.open()
    made = await fill(store)
    results = await asyncio.gather(
        *(store.commit([Put(f"/more/{n}", b"x" * 90_000)]) for n in range(5)), return_exceptions=True
    )
    assert {type(result) for result in results} == {StoreFull}
    assert [entry.key for entry in (await store.list("/")).entries] == sorted(made)
    await store.commit([Delete(key) for key in made[:10]])
    await store.compact(0)
    async with asyncio.timeout(60):
        while True:
            try:
                await store.commit([Put("/again", b"x" * 200_000)])
                break
            except StoreFull:
                await asyncio.sleep(0.01)
    assert await store.get("/again") is not None
    await store.close()


async def test_what_could_not_be_written_is_not_taken_for_written_by_the_next_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db", max_bytes=3_000_000)
    await store.open()
    revision = await store.commit([Put("/a", b"first")])
    cursor = (await store.list("/a")).cursor
    await fill(store)
    with pytest.raises(StoreFull):
        await store.commit([Put("/a", b"x" * 200_000)], [AtRevision("/a", revision)])
    await store.commit([Delete("/a")], [AtRevision("/a", revision)])
    async with asyncio.timeout(60), aclosing(store.watch("/a", cursor)) as watch:
        assert (await anext(watch)).changes == [Change("/a", None, b"first")]
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.host
async def test_a_disk_without_room_writes_nothing_serves_reads_and_recovers(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 6_000_000)
    store = SqliteStore(small_disk / "s.db")
    await store.open()
    made = await fill(store)
    assert [entry.key for entry in (await store.list("/")).entries] == sorted(made)
    assert sorted(file.name for file in small_disk.iterdir()) == [
        "ballast",
        "s.db",
        "s.db-shm",
        "s.db-wal",
        "s.db.lock",
    ]
    ballast.unlink()
    await store.commit([Put("/again", b"x" * 200_000)])
    await store.close()
    await store.open()
    assert [entry.key for entry in (await store.list("/")).entries] == ["/again", *sorted(made)]
    await store.close()
