"""A backup file: one instant, whole or refused, and nothing a stranger could have put there."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import stat
from pathlib import Path

import pytest

from weft.contracts.store import Put
from weft.objects.errors import InUse, InvalidInput, NotFound
from weft.store.backup import read_backup, write_backup
from weft.store.copy import fill
from weft.store.memory import MemoryStore
from weft.store.sqlite import SqliteRefill, SqliteStore

FILES = {"ca.key": "secret\n", "ca.crt": "public\n"}


async def make(path: Path, count: int = 1_203) -> Path:
    store = MemoryStore()
    for first in range(0, count, 100):
        await store.commit([Put(f"/k/{n:05}", f'{{"n": {n}, "é": "\\n"}}'.encode()) for n in range(first, first + 100)])
    await write_backup(path, store, lambda: FILES, weft="0.1.0", taken_at=5.0)
    return path


async def test_what_is_written_is_read_and_only_its_owner_may(tmp_path: Path) -> None:
    backup = read_backup(await make(tmp_path / "b"))
    assert (backup.objects, backup.files, backup.header.revision, backup.header.taken_at) == (1_300, FILES, 13, 5.0)
    assert [value for _, value in backup.entries()] == [f'{{"n": {n}, "é": "\\n"}}'.encode() for n in range(1_300)]
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["b"]


async def test_a_file_that_can_not_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / ("b" * 254)
    with pytest.raises(OSError, match="name too long") as refused:
        await make(path)
    assert refused.value.filename == str(path)


async def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("precious")
    with pytest.raises(InUse, match="exists already"):
        await make(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "precious"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InUse, match="exists already"):
        await make(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "nowhere").exists()
    with pytest.raises(InvalidInput, match=f"there is no folder {tmp_path}/none"):
        await make(tmp_path / "none" / "b")


async def test_a_backup_amid_sixteen_writers_has_all_that_was_acknowledged_before_and_is_one_instant(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    await store.commit([Put("/fill/0", b"x")])
    acknowledged: dict[int, int] = {}
    stop = False

    async def write(writer: int) -> None:
        n = 0
        while not stop:
            n += 1
            await store.commit([Put(f"/w/{writer:02}/{half}", b"%d" % n) for half in ("a", "z" * 200)])
            await store.commit([Put(f"/grows/{writer:02}/{n:06}", b"x" * 300)])
            acknowledged[writer] = n

    writers = [asyncio.create_task(write(n)) for n in range(16)]
    before = []
    for number in range(4):
        await asyncio.sleep(0.2)
        before.append(dict(acknowledged))
        await write_backup(tmp_path / f"b{number}", store, dict, weft="0.1.0", taken_at=0)
    stop = True
    await asyncio.gather(*writers)
    await store.close()
    for number, known in enumerate(before):
        found = dict(read_backup(tmp_path / f"b{number}").entries())
        assert len(known) == 16
        for writer, n in known.items():
            newest = int(found[f"/w/{writer:02}/a"])
            assert newest >= n, "an acknowledged write is missing"
            assert found[f"/w/{writer:02}/{'z' * 200}"] == b"%d" % newest, "half a commit"
            assert all(f"/grows/{writer:02}/{k:06}" in found for k in range(1, n + 1))


async def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    good = (await make(tmp_path / "good")).read_bytes()
    text = gzip.decompress(good)
    lines = text.splitlines(keepends=True)
    bad = {
        "empty": b"",
        "foreign": b"PK\x03\x04 something else altogether",
        "other-gzip": gzip.compress(b'{"hello": 1}\n'),
        "cut": good[: len(good) // 2],
        "cut-at-a-line": gzip.compress(b"".join(lines[:-1])),
        "one-bit": good[:3000] + bytes([good[3000] ^ 1]) + good[3001:],
        "one-digit": gzip.compress(text.replace(b'"n\\": 7,', b'"n\\": 8,', 1)),
        "one-object-less": gzip.compress(b"".join(lines[:500] + lines[501:])),
        "more-after": gzip.compress(text + b"more\n"),
        "newer": gzip.compress(text.replace(b'"version":1', b'"version":3', 1)),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput, match=str(tmp_path / name)):
            read_backup(tmp_path / name)
    with pytest.raises(NotFound, match="none"):
        read_backup(tmp_path / "none")


async def test_a_backup_of_any_engine_is_put_into_sqlite(tmp_path: Path) -> None:
    backup = read_backup(await make(tmp_path / "b"))
    await fill(SqliteRefill(tmp_path / "s.db"), backup.entries(), backup.header.revision)
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    page = await store.list("")
    assert [(entry.key, entry.value) for entry in page.entries] == list(backup.entries())
    assert await store.commit([Put("/k/00000", b"1")]) > backup.header.revision
    await store.close()


async def test_what_was_uploaded_goes_along_and_comes_back_whole(tmp_path: Path) -> None:
    folder, back = tmp_path / "code", tmp_path / "state" / "code"
    folder.mkdir()
    contents = [b"", b"short", os.urandom(3_100_000)]
    for content in contents:
        (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)
    (folder / ".upload-x").write_bytes(b"half")
    store = MemoryStore()
    await store.commit([Put("/k/1", b"{}")])
    await write_backup(tmp_path / "b", store, lambda: FILES, weft="0.1.0", taken_at=5.0, uploads=folder)
    backup = read_backup(tmp_path / "b")
    assert (backup.objects, backup.uploads, backup.files, backup.header.version) == (1, 3, FILES, 2)
    assert [key for key, _ in backup.entries()] == ["/k/1"]
    backup.put_uploads(back)
    assert {path.name: path.read_bytes() for path in back.iterdir()} == {
        hashlib.sha256(content).hexdigest(): content for content in contents
    }


async def test_without_uploads_an_older_weft_reads_it_too(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.commit([Put("/k/1", b"{}")])
    await write_backup(tmp_path / "b", store, lambda: FILES, weft="0.1.0", taken_at=5.0, uploads=tmp_path / "none")
    backup = read_backup(tmp_path / "b")
    assert (backup.header.version, backup.uploads) == (1, 0)
    backup.put_uploads(tmp_path / "back")
    assert not (tmp_path / "back").exists()


async def test_an_upload_that_a_disk_has_spoilt_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / ("ab" * 32)).write_bytes(b"something else")
    backup = await write_backup(
        tmp_path / "b", MemoryStore(), lambda: FILES, weft="0.1.0", taken_at=5.0, uploads=folder
    )
    assert backup.uploads == read_backup(tmp_path / "b").uploads == 0
