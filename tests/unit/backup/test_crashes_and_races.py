"""Killed at any act, raced by others, with clocks that jump: nothing is published half, nothing that is needed is deleted."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_long
from tests.unit.backup.lab import DAY, Killed, Lab, Mortal, load, random_chunks, store

from weft.backup.format import CHUNK
from weft.backup.lease import CleanupLock
from weft.backup.storage.directory import DirectoryStorage
from weft.objects.errors import BackupLeaseLost, Forbidden, InUse, NotFound, Unavailable

YEAR = 365 * DAY


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def sweep(lab: Lab, runs: int = 4) -> None:
    """Clean-ups over some days, as another process."""
    for _ in range(runs):
        lab.clock.at += 2 * DAY
        with lab.open() as other:
            other.prune()


@pytest.mark.parametrize("done", mark_long([False, True], True))
def test_a_backup_killed_at_any_act_is_whole_or_not_there(tmp_path: Path, done: bool) -> None:
    old, new = random_chunks(18, 1), random_chunks(9, 2) + random_chunks(9, 3)
    at, ended = 1, False
    while not ended:
        lab = Lab(tmp_path / f"{at}")
        first = store(lab.repo, old)
        mortal = Mortal(DirectoryStorage(lab.place), at, done)
        try:
            store(lab.open("mortal", mortal), new, on=first.id)
            ended = True
        except Killed:
            pass
        other = lab.open()
        for backup in other.backups().backups:
            assert load(other, backup) == (old if backup.id == first.id else new)
        again = store(other, new)
        sweep(lab)
        fresh = lab.open("fresh")
        assert load(fresh, again) == new and load(fresh, first) == old
        assert fresh.verify().damaged == []
        assert not list((lab.place / "tmp").iterdir()), "what was cut off is cleaned up"
        assert not list((lab.place / "leases").iterdir())
        at += 1
    assert at > 8


@pytest.mark.parametrize("stride", mark_long([2, 1], 1))
@pytest.mark.parametrize("done", mark_long([False, True], True))
def test_a_clean_up_killed_at_any_act_loses_nothing_and_the_next_ones_finish(
    tmp_path: Path, done: bool, stride: int
) -> None:
    keep, drop = random_chunks(20, 1), random_chunks(20, 2)
    at, ended = 1 + done if stride > 1 else 1, False  # before each other act, or after the others
    while not ended:
        lab = Lab(tmp_path / f"{at}")
        gone = store(lab.repo, drop + keep[:CHUNK])  # its pack is mostly not needed later
        kept = store(lab.repo, keep)
        mortal = Mortal(DirectoryStorage(lab.place), at, done)
        try:
            with lab.open("mortal", mortal) as other:
                other.prune({gone.id})
                lab.clock.at += 2 * DAY
                other.prune()
                lab.clock.at += 2 * DAY
                other.prune()
            ended = True
        except Killed:
            pass
        assert load(lab.open(), kept) == keep
        lab.clock.at += DAY
        with lab.open() as other:
            other.prune({gone.id})
        sweep(lab)
        fresh = lab.open("fresh")
        assert load(fresh, kept) == keep and [one.id for one in fresh.backups().backups] == [kept.id]
        assert sum(pack.stat().st_size for pack in lab.packs()) < 26 * CHUNK
        assert not list((lab.place / "trash").iterdir()) and not list((lab.place / "condemned").iterdir())
        at += stride
    assert at > 15


def test_a_chunk_that_a_writer_found_is_kept_although_its_backup_is_deleted(lab: Lab) -> None:
    data = random_chunks(20, 1)
    first = store(lab.repo, data)
    with lab.repo.write() as writer:
        writer.disk("root", len(data), lambda at, n: data[at : at + n])
        with lab.open() as other:
            other.prune({first.id})
        for _ in range(3):
            lab.clock.at += 2 * DAY
            writer._lease.check()
            with lab.open() as other:
                assert other.prune().deleted_packs == 0
        made = writer.publish(kind="vm", name="web")
    sweep(lab)
    assert made.stored_bytes == 0
    assert load(lab.open("fresh"), made) == data


def test_a_backup_that_another_builds_on_stays_until_that_is_published(lab: Lab) -> None:
    data = bytearray(random_chunks(20, 1))
    first = store(lab.repo, bytes(data))
    with lab.repo.write(previous=first.id) as writer:
        with lab.open() as other:
            other.prune({first.id})
            lab.clock.at += 2 * DAY
            writer._lease.check()
            other.prune()
        data[:CHUNK] = random_chunks(1, 2)
        writer.disk("root", len(data), lambda at, n: bytes(data[at : at + n]), [(0, CHUNK, False)], "root")
        made = writer.publish(kind="vm", name="web")
    sweep(lab)
    assert load(lab.open("fresh"), made) == bytes(data)
    with pytest.raises(NotFound):
        lab.repo.write(previous=first.id)


def test_a_writer_that_begins_after_the_condemnation_stores_anew(lab: Lab) -> None:
    data = random_chunks(20, 1)
    first = store(lab.repo, data)
    with lab.open() as other:
        other.prune({first.id})
    made = store(lab.repo, data)
    assert made.stored_bytes > 20 * CHUNK
    sweep(lab)
    assert len(lab.packs()) == 1
    assert load(lab.open("fresh"), made) == data


def test_a_writer_that_slept_through_two_clean_ups_is_not_published(lab: Lab) -> None:
    data = random_chunks(20, 1)
    with lab.repo.write() as writer:
        writer.disk("root", len(data), lambda at, n: data[at : at + n])
        sweep(lab, 2)
        with pytest.raises(BackupLeaseLost):
            writer.publish(kind="vm", name="web")
    assert lab.repo.backups().backups == []
    sweep(lab)
    assert lab.packs() == []


def test_a_lease_that_a_power_cut_left_empty_ends_with_the_second_clean_up(lab: Lab) -> None:
    store(lab.repo, random_chunks(2, 1))
    lease = lab.place / "leases" / ("0" * 32)
    lease.touch()
    sweep(lab, 1)
    assert lease.exists()
    sweep(lab, 1)
    assert not lease.exists()


def test_a_reader_keeps_what_it_reads(lab: Lab) -> None:
    data = random_chunks(40, 1)
    first = store(lab.repo, data)
    with lab.repo.read(first.id) as reader:
        with lab.open() as other:
            other.prune({first.id})
        for _ in range(3):
            lab.clock.at += 2 * DAY
            assert reader._lease is not None
            reader._lease.check()
            with lab.open() as other:
                other.prune()
        assert reader.read("root", 0, len(data)) == data
    sweep(lab)
    assert lab.packs() == []


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_clock_that_jumps_a_year_between_mark_and_sweep_loses_nothing(lab: Lab, jump: float) -> None:
    data = random_chunks(20, 1)
    first = store(lab.repo, data)
    with lab.repo.write() as writer:
        writer.disk("root", len(data), lambda at, n: data[at : at + n])
        with lab.open() as other:
            other.prune({first.id})
        lab.clock.at += jump
        for _ in range(3):
            writer._lease.check()
            with lab.open() as other:
                assert other.prune().deleted_packs == 0
        made = writer.publish(kind="vm", name="web")
    lab.clock.at -= jump
    sweep(lab)
    assert load(lab.open("fresh"), made) == data


def test_what_is_mostly_not_needed_is_copied_and_then_deleted(lab: Lab) -> None:
    data = random_chunks(40, 1)
    first = store(lab.repo, data)
    second = store(lab.repo, data[: 4 * CHUNK])
    before = sum(pack.stat().st_size for pack in lab.packs())
    assert lab.repo.prune({first.id}).copied_packs == 1
    assert load(lab.repo, second) == data[: 4 * CHUNK]
    sweep(lab)
    assert sum(pack.stat().st_size for pack in lab.packs()) < before / 3
    assert load(lab.open("fresh"), second) == data[: 4 * CHUNK]


def test_two_clean_ups_at_once_are_refused_and_one_that_slept_stops(lab: Lab) -> None:
    sleeper = CleanupLock(DirectoryStorage(lab.place), lab.clock)
    with pytest.raises(InUse, match="being cleaned up"):
        lab.repo.prune()
    lab.clock.at += 3600
    later = CleanupLock(DirectoryStorage(lab.place), lab.clock)
    with pytest.raises(InUse):
        sleeper.check()
    later.check()
    later.release()
    lab.repo.prune()


def test_two_writers_of_the_same_data_both_restore(lab: Lab) -> None:
    data, other = random_chunks(20, 1), lab.open()
    with lab.repo.write() as one, other.write() as two:
        for writer in (one, two):
            writer.disk("root", len(data), lambda at, n: data[at : at + n])
        made = [writer.publish(kind="vm", name="web") for writer in (two, one)]
    sweep(lab)
    assert len(lab.packs()) == 1, "the second copy is not needed"
    for backup in made:
        assert load(lab.open("fresh"), backup) == data


class Full(DirectoryStorage):
    def put(self, key: str, data: bytes, **how: Any) -> str:
        if key.startswith("index/"):
            raise self.explain(OSError(errno.ENOSPC, "No space left on device"))
        return super().put(key, data, **how)


def test_a_full_repository_publishes_nothing_and_goes_on_when_there_is_space(lab: Lab) -> None:
    data = random_chunks(20, 1)
    with pytest.raises(Unavailable, match="is full"):
        store(lab.open("full", Full(lab.place)), data)
    assert lab.repo.backups().backups == []
    assert load(lab.repo, store(lab.repo, data)) == data


class ReadOnly(DirectoryStorage):
    def put(self, key: str, data: bytes, **how: Any) -> str:
        raise self.explain(OSError(errno.EROFS, "Read-only file system"))


def test_a_read_only_repository_still_restores(lab: Lab) -> None:
    data = random_chunks(20, 1)
    made = store(lab.repo, data)
    other = lab.open("other", ReadOnly(lab.place))
    assert load(other, made) == data
    with pytest.raises(Forbidden, match="can't be written"):
        store(other, data)


def test_an_older_copy_of_the_whole_place_takes_back_what_is_newer(lab: Lab) -> None:
    first = store(lab.repo, random_chunks(4, 1))
    packs = set(lab.packs())
    second = store(lab.repo, random_chunks(4, 2))
    for pack in set(lab.packs()) - packs:
        pack.unlink()
        (lab.place / "index" / pack.name).unlink()
    (lab.place / "backups" / second.id).unlink()
    assert [one.id for one in lab.repo.backups().backups] == [first.id]
    again = store(lab.repo, random_chunks(4, 2))
    assert load(lab.open(), again) == random_chunks(4, 2)
