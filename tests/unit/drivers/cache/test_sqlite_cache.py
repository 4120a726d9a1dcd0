"""The cache in a file: what every cache promises, two processes and a kill, and the bounds of the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.cache_contract import CacheContract, until_works

from weft.contracts.clock import SystemClock
from weft.contracts.edge.cache import Cache
from weft.drivers.cache.sqlite.driver import ENTRY_BYTES, FILE, SqliteCache
from weft.objects.errors import TimedOut, Unavailable

WRITER = """
import asyncio, sys
from pathlib import Path
from weft.contracts.clock import SystemClock
from weft.drivers.cache.sqlite.driver import SqliteCache

async def main():
    cache, number = SqliteCache(Path(sys.argv[1]), SystemClock()), 0
    while True:
        await cache.put({f"other:{number % 50}:{one}": b"x" * 5000 for one in range(20)}, 600)
        number += 1
        if number == 3:
            print("writes", flush=True)

asyncio.run(main())
"""


class SetClock(SystemClock):
    at = 1_000_000.0

    def now(self) -> float:
        return self.at


class FilePeer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: Cache = SqliteCache(folder, SystemClock())

    def open_other(self) -> Cache:
        return SqliteCache(self.folder, SystemClock())

    async def kill(self) -> None:
        """Another process that writes is killed while it does."""
        pipe = asyncio.subprocess.PIPE
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(self.folder), stdout=pipe)
        assert writer.stdout is not None
        async with asyncio.timeout(60):
            assert await writer.stdout.readline() == b"writes\n"
        for number in range(20):  # while it writes, too
            await until_works(lambda number=number: self.cache.put({"mine": b"%d" % number}, 600))
        with contextlib.suppress(ProcessLookupError):
            writer.kill()
        await writer.wait()

    async def mend(self) -> None:
        found = sqlite3.connect(self.folder / FILE)
        assert found.execute("pragma integrity_check").fetchone() == ("ok",)
        counted = found.execute("select count(*), sum(size) from entry").fetchone()
        assert counted == found.execute("select entries, bytes from total").fetchone()
        whole = found.execute("select count(*) from entry where key like 'other:%' and length(value) = 5000").fetchone()
        assert whole[0] % 20 == 0 and whole[0] >= 60  # all twenty of a put, or none
        found.close()

    async def empty(self) -> None:
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[FilePeer]:
    made = FilePeer(tmp_path / "gateway")
    yield made
    await made.cache.close()


class TestSqliteCache(CacheContract):
    pass


async def test_what_was_written_first_goes_when_there_are_too_many_or_they_are_too_large(tmp_path: Path) -> None:
    cache = SqliteCache(tmp_path, SystemClock(), most_entries=10, most_bytes=10_000 + 10 * ENTRY_BYTES)
    await cache.put({f"k{number}": b"1" for number in range(10)}, 600)
    await cache.put({"k0": b"2"}, 600)  # written last now
    await cache.put({"new": b"1"}, 600)
    assert [await cache.get(key) for key in ("k0", "k1", "k2", "new")] == [b"2", None, b"1", b"1"]
    await cache.put({"large": b"x" * 9990}, 600)
    assert [await cache.get("new"), len(await cache.get("large") or b"")] == [b"1", 9990]
    await cache.put({"last": b"1" * 2000}, 600)
    assert await cache.get("large") is None and await cache.get("last") is not None
    await cache.put({f"k{number}": b"x" * 5000 for number in range(5)}, 600)  # more than the file may hold, at once
    assert [await cache.get(f"k{number}") is not None for number in range(5)] == [False, False, False, True, True]
    await cache.close()


async def test_the_file_stays_within_its_bound_whatever_is_written(tmp_path: Path) -> None:
    draw, most = random.Random(1), 1 << 20
    cache = SqliteCache(tmp_path, SystemClock(), most_entries=200, most_bytes=most)
    for _ in range(60):
        sizes = [draw.choice((0, 10, 4000, 4100, 8200, 60_000)) for _ in range(20)]
        await cache.put({f"{draw.random()}": bytes(size) for size in sizes}, draw.choice((0.001, 600)))
    assert (tmp_path / FILE).stat().st_size <= 2 * (most + 200 * 4096) + 64 * 4096
    found = sqlite3.connect(tmp_path / FILE)
    entries, size = found.execute("select count(*), sum(size) from entry").fetchone()
    assert entries <= 200 and size <= most
    assert found.execute("pragma max_page_count").fetchone()  # and the entries of 1 ms are gone with the next put
    found.close()
    await cache.close()


async def test_a_reader_that_never_ends_stops_writes_before_the_log_fills_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.drivers.cache.sqlite.driver.ANSWER_SECONDS", 0.1)
    cache = SqliteCache(tmp_path, SystemClock(), most_log_bytes=200_000)
    await cache.put({"k": b"1"}, 600)
    reader = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    reader.execute("begin")
    reader.execute("select * from entry").fetchall()
    with pytest.raises(Unavailable, match="keeps reading"):
        for number in range(100):
            await cache.put({f"k{number}": b"x" * 50_000}, 600)
    assert (tmp_path / f"{FILE}-wal").stat().st_size < 400_000
    reader.close()
    await cache.put({"k": b"2"}, 600)
    assert await cache.get("k") == b"2"
    await cache.close()


async def test_a_clock_that_jumps_makes_no_value_live_longer(tmp_path: Path) -> None:
    clock = SetClock()
    cache = SqliteCache(tmp_path, clock)
    await cache.put({"k": b"1"}, 60)
    clock.at -= 3600  # it was wrong by an hour: nobody knows how old the value is
    assert await cache.get("k") is None
    await cache.put({"k": b"2"}, 60)
    assert await cache.get("k") == b"2"
    clock.at += 3600
    assert await cache.get("k") is None
    await cache.close()


async def test_a_file_that_is_none_is_begun_again_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(os.urandom(20_000))
    cache = SqliteCache(tmp_path, SystemClock())
    with pytest.raises(Unavailable, match="a new one begins"):
        await cache.get("k")
    await cache.put({"k": b"1"}, 60)
    assert await cache.get("k") == b"1"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    await cache.close()


async def test_another_program_that_holds_the_file_costs_its_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.drivers.cache.sqlite.driver.ANSWER_SECONDS", 0.1)
    cache = SqliteCache(tmp_path, SystemClock())
    await cache.put({"k": b"1"}, 60)
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("begin immediate")
    with pytest.raises(TimedOut, match="another process"):
        await cache.put({"k": b"2"}, 60)
    assert await cache.get("k") == b"1"
    holder.close()
    await cache.put({"k": b"2"}, 60)
    await cache.close()


async def test_a_folder_that_can_t_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"cache .*(Not a directory|File exists)"):
        await SqliteCache(tmp_path / "file", SystemClock()).put({"k": b""}, 60)


async def test_a_link_a_pipe_and_a_folder_in_its_place_are_refused_with_the_remedy_and_left_alone(
    tmp_path: Path,
) -> None:
    place, other = tmp_path / FILE, tmp_path / "gateway.db"
    base = sqlite3.connect(other)
    base.execute("create table twin (uid text)")
    base.commit()
    cache = SqliteCache(tmp_path, SystemClock())
    for make, remove in (
        (lambda: place.symlink_to(other.name), place.unlink),
        (lambda: os.mkfifo(place), place.unlink),
        (place.mkdir, place.rmdir),
    ):
        make()
        with pytest.raises(Unavailable, match="is not a file") as refused:
            await cache.put({"k": b"v"}, 60)
        assert refused.value.hint.startswith("remove it")
        remove()
    await cache.put({"k": b"v"}, 60)
    assert [name for (name,) in base.execute("select name from sqlite_master")] == ["twin"]
    base.close()
    await cache.close()


async def test_a_file_of_another_version_of_weft_is_begun_again(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / FILE)
    base.executescript("create table entry (name text); pragma user_version = 2")
    base.close()
    cache = SqliteCache(tmp_path, SystemClock())
    with pytest.raises(Unavailable, match="which another weft wrote; a new one begins"):
        await cache.put({"k": b"v"}, 60)
    await cache.put({"k": b"v"}, 60)
    assert await cache.get("k") == b"v"
    await cache.close()
