"""What was stored comes back: whole, from increments, after resizes, by any reader, against a plain model."""

from __future__ import annotations

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_seeds
from tests.unit.backup.lab import KEY, Lab, Time, load, random_chunks, store

from weft.backup import reader as reading
from weft.backup.format import CHUNK, FRAME_CHUNKS, HOLE
from weft.backup.key import RepositoryKey
from weft.backup.parts import drop_front
from weft.backup.reader import STEP
from weft.backup.repository import Repository
from weft.backup.storage.directory import DirectoryStorage
from weft.objects.errors import AlreadyExists, Forbidden, InvalidInput, NotFound, Unavailable


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.mark.parametrize("seed", mark_seeds(6))
def test_random_histories_restore_as_the_model_says(tmp_path: Path, seed: int) -> None:
    lab, chance = Lab(tmp_path), random.Random(seed)
    blocks = [random_chunks(1, n) for n in range(12)] + [bytes(CHUNK)] * 4
    disk = bytearray()
    kept: dict[str, bytes] = {}
    last = None
    for _ in range(8):
        size = chance.randrange(0, 60 * CHUNK, 512) if chance.random() < 0.4 or not disk else len(disk)
        changed = [(len(disk), size - len(disk), False)] if size > len(disk) else []
        disk = disk[:size] + bytes(max(0, size - len(disk)))
        ranges = []
        for _ in range(chance.randrange(6)):
            at = chance.randrange(0, max(1, size), 512)
            length = min(chance.choice([512, 4096, CHUNK, 3 * CHUNK]), size - at)
            zero = chance.random() < 0.3
            disk[at : at + length] = bytes(length) if zero else (chance.choice(blocks) * 4)[:length]
            ranges.append((at, length, False))
        data = bytes(disk)
        if last and chance.random() < 0.8:
            made = store(lab.repo, data, sorted([*ranges, *changed]), last.id)
        else:
            made = store(lab.repo, data)
        kept[made.id], last = data, made
        assert made.disks[0].stored_chunks == sum(any(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))
        if chance.random() < 0.3 and len(kept) > 1:
            gone = chance.choice(sorted(set(kept) - {last.id}))
            del kept[gone]
            lab.repo.prune({gone}, grace=0)
            lab.repo.prune(grace=0)
    other = lab.open()
    listed = {backup.id: backup for backup in other.backups().backups}
    assert listed.keys() == kept.keys()
    for name, data in kept.items():
        assert load(other, listed[name]) == data
        with other.read(name) as reader:
            reader.export("root", tmp_path / name)
            assert (tmp_path / name).read_bytes() == data
            at = chance.randrange(len(data) + 1)
            assert reader.read("root", at, len(data) - at) == data[at:]
    assert sorted(other.verify().sound) == sorted(kept)


def test_what_is_read_of_scattered_chunks_holds_at_most_twice_its_length_in_memory(lab: Lab) -> None:
    data = random_chunks(8 * FRAME_CHUNKS, 1)
    with lab.repo.read(store(lab.repo, data).id) as reader:
        chunks, ids = reader._chunks, list(reader.tree("root").ids(0, 8 * FRAME_CHUNKS))
        for step in (1, 2, 3, FRAME_CHUNKS):
            numbers = range(0, len(ids), step)
            views = chunks.view_many([ids[number] for number in numbers])
            assert [views[ids[number]] for number in numbers] == [data[n * CHUNK : (n + 1) * CHUNK] for n in numbers]
            kept = {id(view.obj): len(view.obj) for view in views.values()}  # type: ignore[arg-type]
            assert sum(kept.values()) <= 2 * len(views) * CHUNK


def test_an_export_whose_sync_fails_halfway_fails(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, count = store(lab.repo, random_chunks(6 * STEP, 1)), 0

    def sync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(reading, "SYNC_BYTES", CHUNK)
    monkeypatch.setattr(os, "fdatasync", sync)
    with lab.repo.read(made.id) as reader, pytest.raises(OSError, match="the disk is broken"):
        reader.export("root", tmp_path / "disk")
    assert count >= 1 and not (tmp_path / "disk").exists() and not list(tmp_path.glob(".*restoring"))


def test_an_increment_stores_and_reads_only_what_changed(lab: Lab) -> None:
    data = bytearray(random_chunks(64, 1))
    first = store(lab.repo, bytes(data))
    data[10 * CHUNK : 11 * CHUNK] = random_chunks(1, 2)
    asked: list[tuple[int, int]] = []

    def read(at: int, length: int) -> bytes:
        asked.append((at, length))
        return bytes(data[at : at + length])

    with lab.repo.write(previous=first.id) as writer:
        writer.disk("root", len(data), read, [(10 * CHUNK + 512, 1024, False)], "root")
        second = writer.publish(kind="vm", name="web")
    assert asked == [(10 * CHUNK, CHUNK)]
    assert second.stored_bytes < 3 * CHUNK < first.stored_bytes
    assert load(lab.repo, second) == bytes(data)


def test_what_was_stored_once_is_not_stored_again(lab: Lab) -> None:
    data = random_chunks(40, 1)
    store(lab.repo, data)
    assert store(lab.open(), data).stored_bytes == 0


def test_a_zero_range_is_a_hole_without_being_read(lab: Lab) -> None:
    first = store(lab.repo, random_chunks(8, 1))
    with lab.repo.write(previous=first.id) as writer:
        writer.disk("root", 8 * CHUNK, lambda at, n: pytest.fail("it was read"), [(0, 8 * CHUNK, True)], "root")
        empty = writer.publish(kind="vm", name="web")
    assert load(lab.repo, empty) == bytes(8 * CHUNK) and empty.disks[0].stored_chunks == 0


def test_a_sparse_disk_of_a_gib_restores_sparse(lab: Lab, tmp_path: Path) -> None:
    size = 1 << 30
    piece = random_chunks(3, 1)
    with lab.repo.write() as writer:
        writer.disk("root", size, lambda at, n: (piece * 6)[:n], [(300 << 20, len(piece), False)])
        made = writer.publish(kind="vm", name="web")
    with lab.repo.read(made.id) as reader:
        reader.export("root", tmp_path / "restored")
        assert reader.read("root", 300 << 20, len(piece)) == piece
    assert (tmp_path / "restored").stat().st_size == size
    assert (tmp_path / "restored").stat().st_blocks * 512 < 1 << 20
    assert made.stored_bytes < 1 << 20


def test_each_backup_counts_what_only_it_holds(lab: Lab) -> None:
    shared, own = random_chunks(16, 1), random_chunks(16, 2)
    first, second = store(lab.repo, shared), store(lab.repo, shared + own)
    usage = lab.repo.usage()
    assert usage[first.id].bytes == 16 * CHUNK and usage[second.id].used_bytes == 32 * CHUNK
    assert usage[first.id].unique_bytes < CHUNK
    assert 16 * CHUNK <= usage[second.id].unique_bytes < 18 * CHUNK


def test_changes_out_of_order_and_beyond_the_end_are_refused(lab: Lab) -> None:
    for changes in ([(CHUNK, 512, False), (0, 512, False)], [(0, 2 * CHUNK + 1, False)]):
        with lab.repo.write() as writer, pytest.raises(InvalidInput, match="change"):
            writer.disk("root", 2 * CHUNK, lambda at, n: bytes(n), changes)


def test_another_key_does_not_open_it(lab: Lab) -> None:
    with pytest.raises(Forbidden, match="the key does not open"):
        Repository.open(lab.repo.url, RepositoryKey.generate(), clock=Time(), cache=lab.cache)


def test_a_key_copied_in_part_is_told_from_a_wrong_one() -> None:
    assert RepositoryKey.parse(KEY.text + "\n").text == KEY.text
    for text in (KEY.text[:-3], KEY.text[1:], KEY.text[:20] + "A" + KEY.text[21:] + "A", ""):
        with pytest.raises(InvalidInput, match="not the key"):
            RepositoryKey.parse(text)


def test_another_repository_at_the_address_is_named(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match=lab.repo.id):
        Repository.open(lab.repo.url, KEY, clock=Time(), cache=lab.cache, expected="another")


def test_a_place_without_a_repository_and_one_with_are_told_apart(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no backup repository"):
        Repository.open(f"dir://{tmp_path}/empty", KEY, clock=Time(), cache=lab.cache)
    with pytest.raises(AlreadyExists):
        Repository.create(lab.repo.url, KEY, clock=Time(), cache=lab.cache)
    with pytest.raises(Unavailable, match="no such folder"):
        Repository.open(f"dir://{tmp_path}/gone", KEY, clock=Time(), cache=lab.cache)


def test_a_newer_format_asks_for_a_newer_weft(lab: Lab) -> None:
    header = lab.place / "weft-backup"
    header.write_bytes(header.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(Forbidden, match="format 2"):
        lab.open()


def test_a_repository_that_goes_away_is_named(lab: Lab, tmp_path: Path) -> None:
    lab.place.rename(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="can't be reached"):
        lab.repo.backups()


def test_a_lost_catalogue_is_made_again(lab: Lab) -> None:
    data = random_chunks(20, 1)
    made = store(lab.repo, data)
    lab.repo.close()
    (lab.cache / f"{lab.repo.id}.db").write_bytes(b"not a database" * 1000)
    for end in ("-wal", "-shm"):
        (lab.cache / f"{lab.repo.id}.db{end}").unlink(missing_ok=True)
    assert load(lab.open("cache"), made) == data


def test_what_resists_compression_lies_in_frames_of_its_own(lab: Lab) -> None:
    """Beside random bytes text would be compressed with a code that fits neither."""
    chance, text = random.Random(3), b"a line of a log, and one more\n" * 3000
    chunks = [chance.randbytes(CHUNK) if at % 2 else b"%d" % at + text[: CHUNK - 2] for at in range(40)]
    data = b"".join(chunk.ljust(CHUNK, b".") for chunk in chunks)
    made = store(lab.repo, data)
    with lab.repo.read(made.id) as reader:
        ids = list(reader.tree("root").ids(0, 40))
    catalogue = lab.repo._catalogue
    frames = [frame for pack in catalogue.packs() for frame in catalogue.frames(pack.name)]
    sorts = [{ids.index(id_) % 2 for id_ in frame.ids if id_ in ids} for frame in frames]
    assert sorted(map(sorted, sorts)) == [[], [0], [0], [1], [1]]
    assert load(lab.open("fresh"), made) == data


def test_scattered_changes_of_one_chunk_are_hashed_and_stored_together(lab: Lab) -> None:
    data = random_chunks(80, 1)
    first = store(lab.repo, data)
    new = bytearray(data)
    for at in range(0, 80, 5):
        new[at * CHUNK : (at + 1) * CHUNK] = random_chunks(1, 100 + at)
    changes = [(at * CHUNK, CHUNK, False) for at in range(0, 80, 5)]
    changes.insert(8, (38 * CHUNK, CHUNK, True))  # a hole between two of them
    new[38 * CHUNK : 39 * CHUNK] = HOLE * (CHUNK // len(HOLE))
    second = store(lab.repo, bytes(new), changes, first.id)
    assert load(lab.repo, second) == new
    assert max(len(frame.ids) for frame in lab.repo._catalogue.frames(lab.packs()[-1].name)) == 16


class Slow(DirectoryStorage):
    """Counts how often each frame is read; the first answer comes once ``go`` is set, and fails if ``fails``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go, self.reads, self.fails = threading.Event(), list[int](), True

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        if key.startswith("packs/"):
            self.reads.append(offset)
            self.go.wait(60)
            if self.fails:
                raise self.explain(OSError(5, "Input/output error"))
        return super().get(key, offset, length, version)


def test_a_frame_that_several_threads_want_is_read_once_and_a_failure_is_not_kept(lab: Lab) -> None:
    data = random_chunks(8, 1)
    made = store(lab.repo, data)
    storage = Slow(lab.place)
    here = threading.Barrier(9)

    with lab.open("fresh", storage) as repo, repo.read(made.id) as reader, ThreadPoolExecutor(8) as pool:

        def read(at: int) -> Any:
            here.wait(60)
            return reader.read("root", at * CHUNK, CHUNK)

        storage.go.set()
        with pytest.raises(Unavailable):
            reader.read("root", 0, CHUNK)
        storage.fails = False
        reader.read("root", 0, 0)
        reader.tree("root").leaves()
        storage.go.clear()
        storage.reads.clear()
        reads = [pool.submit(read, at) for at in range(8)]
        here.wait(60)
        storage.go.set()
        assert b"".join(one.result() for one in reads) == data
    assert len(storage.reads) == len(set(storage.reads))


def test_bytes_in_parts_go_on_where_a_short_write_ended() -> None:
    parts = [memoryview(b"abc"), memoryview(b"de"), memoryview(b"fgh")]
    rests = [b"".join(drop_front(parts, count)) for count in range(9)]
    assert rests == [b"abcdefgh"[count:] for count in range(9)]
