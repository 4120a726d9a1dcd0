"""A repository without a free block is still read, and deleting backups makes space in it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from tests.unit.backup.lab import DAY, Full, Lab, load, random_chunks, store

from weft.backup.repository import Repository
from weft.backup.storage.contract import Upload
from weft.backup.storage.directory import DirectoryStorage
from weft.objects.errors import Unavailable

RESERVE = "clean-up/reserve"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def full(lab: Lab) -> Full:
    return Full(lab.place)


@pytest.fixture
def repo(lab: Lab, full: Full) -> Repository:
    return lab.open(storage=full)


def test_all_of_a_full_repository_is_listed_read_and_verified(repo: Repository, full: Full) -> None:
    data = random_chunks(20, 1)
    made = store(repo, data)
    full.left = 0
    assert [one.id for one in repo.backups().backups] == [made.id]
    assert load(repo, made) == data
    assert repo.verify().sound == [made.id]
    with pytest.raises(Unavailable, match="is full"):
        store(repo, random_chunks(1, 2))


def test_damage_is_told_where_it_can_not_be_noted(lab: Lab, repo: Repository, full: Full) -> None:
    made = store(repo, random_chunks(20, 1))
    lab.packs()[0].write_bytes(b"")
    full.left = 0
    assert repo.verify().damaged == [made.id]


def test_a_backup_is_deleted_from_a_full_repository_and_its_space_comes_back(
    lab: Lab, repo: Repository, full: Full
) -> None:
    first, data = store(repo, random_chunks(20, 1)), random_chunks(20, 2)
    second = store(repo, data)
    repo.prune()
    assert (lab.place / RESERVE).stat().st_size == 1 << 20
    full.left = 0
    assert repo.prune([first.id]).condemned_packs == 1
    lab.clock.at += DAY + 1
    assert repo.prune().deleted_packs == 1
    full.left += 1 << 10  # what the pack took
    repo.prune()
    assert (lab.place / RESERVE).stat().st_size == 1 << 20, "for the next time"
    assert load(repo, second) == data


def test_without_a_reserve_each_backup_that_is_deleted_makes_space(lab: Lab, repo: Repository, full: Full) -> None:
    made = [store(repo, random_chunks(1, number)) for number in range(12)]
    repo.prune()
    (lab.place / RESERVE).unlink()
    full.left, refused, condemned = 0, 0, 0
    for one in made[:-1]:
        try:
            condemned += repo.prune([one.id], missing=[one.id]).condemned_packs
        except Unavailable as problem:
            assert "is full" in str(problem)
            refused += 1
        assert not (lab.place / "backups" / one.id).exists()
    assert 0 < refused < 11
    condemned += repo.prune().condemned_packs
    assert condemned == 11
    assert load(repo, made[-1]) == random_chunks(1, 11)


class Narrow(DirectoryStorage):
    """Has space for one pack."""

    def begin(self, key: str, owner: str) -> Upload:
        upload = super().begin(key, owner)
        if any((self.root / "packs").iterdir()):
            upload.abandon()
            raise self.explain(OSError(errno.ENOSPC, "No space left on device"))
        return upload


def test_what_a_full_repository_says_of_what_stays_is_true(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.backup.packs.PACK_CHUNKS", 16)
    data = random_chunks(32, 1)
    with pytest.raises(Unavailable, match="is full") as refused:
        store(lab.open("full", Narrow(lab.place)), data)
    assert "a backup within a day uses the packs (64 MiB each) that were written whole" in (refused.value.hint or "")
    assert len(lab.packs()) == 1 and not list((lab.place / "tmp").iterdir()), "and the one that didn't fit is removed"
    made = store(lab.repo, data)
    assert made.stored_bytes < 1.5 * (1 << 20), "one of two packs was there"
    assert load(lab.repo, made) == data
