"""All keys follow from the repository's id: a header that is lost is put back, and never replaced by one with another id."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.backup.lab import KEY, Lab, load, random_chunks, store

from weft.backup.header import HEADER_COPY
from weft.backup.key import RepositoryKey
from weft.backup.process.job import Job, JobLine
from weft.backup.process.worker import BackupWorker
from weft.backup.repository import Repository
from weft.backup.storage.directory import DirectoryStorage
from weft.contracts.clock import SystemClock
from weft.objects.errors import AlreadyExists, BackupAltered, Forbidden, NotFound

DATA = random_chunks(3, 1)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    store(lab.repo, DATA)
    return lab


def header(lab: Lab) -> Path:
    return lab.place / "weft-backup"


def open_with(lab: Lab, key: RepositoryKey = KEY, cache: str = "new", expected: str | None = None) -> Repository:
    folder = lab.cache.parent / cache
    return Repository.open_in(DirectoryStorage(lab.place), key, clock=lab.clock, cache=folder, expected=expected)


def test_no_new_repository_is_made_among_the_backups_of_one_that_lost_its_header(lab: Lab) -> None:
    header(lab).unlink()
    with pytest.raises(BackupAltered, match="the header of their repository is gone"):
        Repository.create(f"dir://{lab.place}", KEY, clock=lab.clock, cache=lab.cache)
    with pytest.raises(BackupAltered, match="the header of their repository is gone"):
        open_with(lab)
    assert not header(lab).exists()


def test_where_there_is_a_repository_it_is_said_and_not_that_its_header_is_gone(lab: Lab) -> None:
    with pytest.raises(AlreadyExists):
        Repository.create(f"dir://{lab.place}", KEY, clock=lab.clock, cache=lab.cache)


@pytest.mark.parametrize("left", [None, b"", b"{}", b'{"format":"weft'])
def test_a_copy_stands_in_for_a_header_that_is_lost_or_damaged_and_puts_it_back(lab: Lab, left: bytes | None) -> None:
    lab.repo.prune()
    whole = header(lab).read_bytes()
    header(lab).unlink()
    if left is not None:
        header(lab).write_bytes(left)
    with open_with(lab) as repo:
        assert repo.id == lab.repo.id
        assert load(repo, repo.backups().backups[0]) == DATA
        repo.prune()
    assert header(lab).read_bytes() == whole


def test_a_copy_that_is_lost_is_made_again(lab: Lab) -> None:
    lab.repo.prune()
    whole = (lab.place / HEADER_COPY).read_bytes()
    (lab.place / HEADER_COPY).write_bytes(b"x")
    lab.repo.prune()
    assert (lab.place / HEADER_COPY).read_bytes() == whole == header(lab).read_bytes()


@pytest.mark.parametrize("known_by", ["the server", "a catalogue"])
def test_without_a_copy_who_knows_the_id_makes_the_header_again(lab: Lab, known_by: str) -> None:
    header(lab).unlink()
    with open_with(lab, expected=lab.repo.id) if known_by == "the server" else open_with(lab, cache="cache") as repo:
        repo.prune()
    with open_with(lab, cache="third") as repo:
        assert load(repo, repo.backups().backups[0]) == DATA


def test_manifests_that_are_damaged_do_not_hide_the_id_as_a_pack_s_index_shows_it(lab: Lab) -> None:
    header(lab).unlink()
    for manifest in (lab.place / "backups").iterdir():
        manifest.write_bytes(b"")
    assert open_with(lab, expected=lab.repo.id).id == lab.repo.id


def test_an_id_that_opens_nothing_here_makes_no_header(lab: Lab) -> None:
    header(lab).unlink()
    with pytest.raises(BackupAltered):
        open_with(lab, expected="0" * 32)
    with pytest.raises(BackupAltered):
        open_with(lab, RepositoryKey.generate(), expected=lab.repo.id)
    header(lab).write_bytes(b"")
    with pytest.raises(BackupAltered, match="header"):
        open_with(lab, expected="0" * 32)


def test_an_empty_place_gets_none_of_the_repository_that_lay_elsewhere(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound):
        Repository.open_in(
            DirectoryStorage(tmp_path / "empty"), KEY, clock=lab.clock, cache=lab.cache, expected=lab.repo.id
        )


def test_another_repository_s_header_is_left_as_it_is(lab: Lab, tmp_path: Path) -> None:
    lab.repo.prune()
    other = Lab(tmp_path / "other")
    theirs = (other.place / "weft-backup").read_bytes()
    header(lab).write_bytes(theirs)
    lab.repo.prune()
    assert header(lab).read_bytes() == theirs
    with pytest.raises(Forbidden, match="holds the backup repository"):
        open_with(lab, expected=lab.repo.id)


def test_the_hourly_check_puts_a_lost_header_back(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    lab, key = tmp_path / "place", "0f" * 32

    def check(cache: str = "cache", known: str = "") -> JobLine:
        folder = str(tmp_path / cache)
        job = Job(act="check", url=f"dir://{lab}", key=key, cache=folder, repository_id=known)
        return BackupWorker(job, SystemClock(), lambda _: None).run()

    first = check()
    with Repository.open(
        f"dir://{lab}", RepositoryKey(bytes.fromhex(key)), clock=SystemClock(), cache=tmp_path
    ) as repo:
        store(repo, DATA)
    (lab / "weft-backup").unlink()
    assert check("of a new cluster").repository_id == first.repository_id
    for place in ("weft-backup", HEADER_COPY):
        (lab / place).unlink()
    with pytest.raises(BackupAltered, match="gone"):
        check("of another new cluster")
    assert check(known=first.repository_id).repository_id == first.repository_id
    assert check("of another new cluster").repository_id == first.repository_id
