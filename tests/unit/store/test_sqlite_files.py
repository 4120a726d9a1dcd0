"""What becomes of a store's files: opening, reopening, copies put back, damage, a second process."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

import pytest

from weft.contracts.store import Batch, Compacted, Delete, LeaseHeld, PreconditionFailed, Put, Store
from weft.objects.errors import StoreUnavailable
from weft.store.copy import fill
from weft.store.sqlite import SqliteRefill, SqliteStore
from weft.store.sqlite import file as sqlite_file
from weft.store.sqlite.file import LockFile, Mark
from weft.store.sqlite.schema import State


@asynccontextmanager
async def opened(path: Path, keep_revisions: int = 100_000) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, keep_revisions=keep_revisions)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def cursor_of(store: Store) -> str:
    return (await store.list("/", limit=1)).cursor


async def next_batch(store: Store, cursor: str) -> Batch:
    async with asyncio.timeout(60), aclosing(store.watch("/", cursor)) as watch:
        return await anext(watch)


async def test_what_was_committed_is_there_after_reopening_and_cursors_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.db") as store:
        first = await store.commit([Put("/a", b"1")], idempotency_key="once")
        cursor = await cursor_of(store)
        second = await store.commit([Put("/b", b"2")])
    async with opened(tmp_path / "s.db") as store:
        assert [(e.key, e.revision) for e in (await store.list("/")).entries] == [("/a", first), ("/b", second)]
        assert (await next_batch(store, cursor)).revision == second
        assert await store.commit([Put("/a", b"3")], idempotency_key="once") == first
        assert await store.commit([Put("/c", b"3")]) == second + 1


async def test_after_a_restart_no_lease_is_live_and_fences_have_grown(tmp_path: Path) -> None:
    fences = []
    for _ in range(3):
        async with opened(tmp_path / "s.db") as store:
            assert await store.leases("") == []
            for fence in fences:
                with pytest.raises(PreconditionFailed):
                    await store.commit([Put("/a", b"")], [LeaseHeld("leader", fence)])
            lease = await store.grant("leader", "me", 1_000)
            assert lease is not None
            fences.append(lease.fence)
    assert fences == sorted(set(fences))


async def test_renewals_write_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.db") as store:
        for n in range(1_000):
            await store.grant(f"node/{n}", "x", 30)
        files = sorted(tmp_path.iterdir())

        def look() -> list[tuple[str, int, int]]:
            return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

        before: list[tuple[str, int, int]] = []
        while before != (before := look()):  # the writer may still be noting the grants
            await asyncio.sleep(0.1)
        for n in range(1_000):
            await store.grant(f"node/{n}", "x", 30)
        await asyncio.sleep(0.1)
        assert look() == before


async def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.db") as store:
        await store.commit([Put("/a", b"secret")])
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_closing_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    def held() -> tuple[list[str], list[str]]:
        files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("store-")]
        return threads, [name for name in files if name.startswith(str(tmp_path))]

    async with opened(tmp_path / "s.db") as store:
        await asyncio.gather(*(store.get("/a") for _ in range(20)))
        assert held()[0] and held()[1]
    with pytest.raises(StoreUnavailable):
        (tmp_path / "bad.db").write_bytes(b"no database" * 100)
        await SqliteStore(tmp_path / "bad.db").open()
    assert held() == ([], [])


async def test_a_second_opening_is_refused_and_names_the_process(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from weft.store.sqlite import SqliteStore\n"
        "from weft.objects.errors import StoreUnavailable\n"
        "try: asyncio.run(SqliteStore(sys.argv[1]).open())\n"
        "except StoreUnavailable as refusal: print(refusal)\n"
    )
    async with opened(tmp_path / "s.db") as store:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", script, str(tmp_path / "s.db")],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert f"in use by process {os.getpid()}" in done.stdout
        with pytest.raises(StoreUnavailable, match="in use"):
            await SqliteStore(tmp_path / "s.db").open()
        await store.commit([Put("/a", b"1")])
    async with opened(tmp_path / "s.db") as store:
        assert await store.get("/a") is not None


async def test_what_is_no_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is not a database, and long enough to be looked at " * 40)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE precious(x)")
    newer = tmp_path / "newer.db"
    async with opened(newer):
        pass
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for path, word in ((garbage, "damaged or not a store"), (other, "not a weft store"), (newer, "newer weft")):
        with pytest.raises(StoreUnavailable, match=word):
            await SqliteStore(path).open()
    assert garbage.read_bytes().startswith(b"this is not")
    with closing(sqlite3.connect(other)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        await SqliteStore(tmp_path / "no-such-folder" / "s.db").open()
    with pytest.raises(StoreUnavailable):
        await SqliteStore(tmp_path).open()


async def test_a_file_another_program_has_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "_BUSY_MILLISECONDS", 50)
    async with opened(tmp_path / "s.db"):
        pass
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked by another process"):
            await SqliteStore(tmp_path / "s.db").open()
        other.execute("ROLLBACK")
    async with opened(tmp_path / "s.db") as store:
        await store.commit([Put("/a", b"1")])


async def test_damage_found_while_reading_is_an_error_and_not_an_answer(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.db") as store:
        for n in range(50):
            await store.commit([Put(f"/k/{n}", b"x" * 5_000)])
    size = (tmp_path / "s.db").stat().st_size
    with (tmp_path / "s.db").open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xff" * (size // 2 // 4096 * 4096 - 4096))
    async with opened(tmp_path / "s.db") as store:
        with pytest.raises(StoreUnavailable, match="damaged"):
            await store.list("/k/")


async def test_after_a_restore_old_cursors_are_refused_and_no_number_comes_again(tmp_path: Path) -> None:
    given = []
    async with opened(tmp_path / "s.db") as store:
        kept = await store.commit([Put("/a", b"kept")])
        lease = await store.grant("leader", "me", 1_000)
        assert lease is not None
        fences = [lease.fence]
        given.append(await store.commit([Put("/a", b"lost")]))
        cursors = [await cursor_of(store)]
    for _ in range(2):  # twice from the same backup: what the first restored store gave out must not come again either
        await fill(SqliteRefill(tmp_path / "s.db"), [("/a", b"kept")], kept)
        async with opened(tmp_path / "s.db") as store:
            entry = await store.get("/a")
            assert entry is not None and entry.value == b"kept"
            given.append(await store.commit([Put("/a", b"new")]))
            lease = await store.grant("leader", "me", 1_000)
            assert lease is not None
            fences.append(lease.fence)
            for cursor in cursors:
                with pytest.raises(Compacted):
                    await next_batch(store, cursor)
            cursors.append(await cursor_of(store))
    assert given == sorted(set(given))
    assert fences == sorted(set(fences))
    for name, value in (("s.db.replaced", b"lost"), ("s.db.replaced-2", b"new")):  # the first one stays, too
        async with opened(tmp_path / name) as store:
            entry = await store.get("/a")
            assert entry is not None and entry.value == value


async def test_a_refill_that_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "s.db") as store:
        await store.commit([Put("/a", b"1")])
        cursor = await cursor_of(store)
        with pytest.raises(StoreUnavailable, match="in use"):
            await fill(SqliteRefill(tmp_path / "s.db"), [("/b", b"1")], 1)
        second = await store.commit([Put("/a", b"2")])

    def breaks_off() -> Iterator[tuple[str, bytes]]:
        yield "/b", b"1"
        raise StoreUnavailable("damaged half-way")

    with pytest.raises(StoreUnavailable, match="half-way"):
        await fill(SqliteRefill(tmp_path / "s.db"), breaks_off(), 1)
    async with opened(tmp_path / "s.db") as store:
        assert (await next_batch(store, cursor)).revision == second
        assert await store.get("/b") is None
    assert not list(tmp_path.glob("*.incoming*"))


async def test_a_refilled_store_works_as_one_that_grew(tmp_path: Path) -> None:
    await fill(SqliteRefill(tmp_path / "s.db"), [(f"/k/{n:04}", b"%d" % n) for n in range(250)], 7)
    async with opened(tmp_path / "s.db", keep_revisions=5) as store:
        page = await store.list("/k/")
        assert [entry.value for entry in page.entries] == [b"%d" % n for n in range(250)]
        for _ in range(50):
            await store.commit([Put("/k/0003", b"again"), Delete("/k/0004")])
            await store.commit([Put("/k/0004", b"back")])
        assert {e.key: e.value for e in (await store.list("/k/000")).entries}["/k/0003"] == b"again"
        assert len((await store.list("/k/")).entries) == 250


@pytest.mark.parametrize("word", range(5))
def test_a_mark_is_read_as_it_was_written_and_a_spoilt_one_is_none(tmp_path: Path, word: int) -> None:
    lock = LockFile(tmp_path / "s.db")
    lock.write_mark(State("epoch", "session", 7, fence_ceiling=9))
    assert lock.read_mark() == Mark("epoch", "session", 7, 9)
    words = lock.path.read_text().split()
    lock.path.write_text(" ".join([*words[:word], *words[word + 1 :]]))
    assert lock.read_mark() is None, "a word is missing"
    lock.path.write_text(" ".join([*words[:word], "x-1", *words[word + 1 :]]))
    assert (lock.read_mark() is None) is (word in (2, 3)), "a number is none"


async def test_an_older_file_put_back_by_hand_is_noticed(tmp_path: Path) -> None:
    path, aside = tmp_path / "s.db", tmp_path / "aside.db"
    for between in ("same session", "another session", "lock file lost"):
        for file in tmp_path.iterdir():
            file.unlink()
        async with opened(path) as store:
            await store.commit([Put("/a", b"1")])
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(aside)) as copy:
                source.backup(copy)
            for _ in range(5):
                await store.commit([Put("/a", b"2")])
            cursor = await cursor_of(store)
        if between == "another session":
            async with opened(path):
                pass
        if between == "lock file lost":
            path.with_name("s.db.lock").unlink()
        shutil.copy(aside, path)
        async with opened(path) as store:
            for _ in range(9):  # well past the cursor's revision: only the epoch can tell now
                await store.commit([Put("/a", b"3")])
            with pytest.raises(Compacted):
                await next_batch(store, cursor)


async def test_the_log_grows_as_far_as_its_checkpoints_and_is_cut_back_when_a_long_reader_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "_CHECKPOINT_PAGES", 100)
    monkeypatch.setattr(sqlite_file, "_LOG_FILE_BYTES", 1_000_000)
    log = tmp_path / "s.db-wal"
    async with opened(tmp_path / "s.db") as store:
        for number in range(100):
            await store.commit([Put(f"/{number % 10}", b"x" * 50_000)])
        assert log.stat().st_size <= 1_000_000
        with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            for number in range(100):
                await store.commit([Put(f"/{number % 10}", b"y" * 50_000)])
            assert log.stat().st_size > 4_000_000
        for number in range(20):
            await store.commit([Put(f"/{number % 10}", b"z" * 50_000)])
        assert log.stat().st_size <= 1_000_000
