"""A mounted folder as a pool and a backup repository, as an NFS share is: once it is unmounted, nothing is written beneath it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.backup.lab import KEY, random_chunks

from weft.backup.process.job import Job
from weft.backup.process.worker import BackupWorker
from weft.backup.repository import Repository
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, NotFound, Unavailable

pytestmark = pytest.mark.host


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "share"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "share", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=False, stderr=subprocess.DEVNULL)


def unmount(share: Path) -> None:
    subprocess.run(
        ["umount", "-l", share], check=True
    )  # as a share goes whose server is given up: also while files are open
    assert list(share.iterdir()) == []


def test_a_backup_that_runs_as_the_share_goes_fails_and_writes_nothing_beneath(share: Path, tmp_path: Path) -> None:
    data = random_chunks(40, 1)
    with Repository.create(f"dir://{share}", KEY, clock=SystemClock(), cache=tmp_path / "cache") as repository:
        with pytest.raises(Unavailable, match="its file system was unmounted"), repository.write() as writer:
            writer.disk("root", len(data), lambda at, length: data[at : at + length])
            unmount(share)
            writer.publish(kind="vm", name="web")
        with pytest.raises(Unavailable):
            repository.prune()
    assert list(share.iterdir()) == []


def test_a_repository_whose_share_is_missing_is_not_made_anew(share: Path, tmp_path: Path) -> None:
    job = Job(act="check", url=f"dir://{share}", key="0f" * 32, cache=str(tmp_path / "cache"))
    made = BackupWorker(job, SystemClock(), print).run().repository_id
    unmount(share)
    again = Job(act="check", url=job.url, key=job.key, cache=job.cache, repository_id=made)
    with pytest.raises(NotFound, match="holds no backup repository") as refused:
        BackupWorker(again, SystemClock(), print).run()
    assert "mounted" in str(refused.value.hint) and list(share.iterdir()) == []


async def test_a_pool_whose_share_is_missing_takes_no_disk(share: Path, tmp_path: Path) -> None:
    state = str(tmp_path)
    host = Host("n1", "uid-n1", state, state, "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    pool = DirectoryVolumes(host, "shared", str(share))
    assert pool.pool().id
    await pool.ensure("a-volume", size_bytes=1 << 20)
    unmount(share)
    with pytest.raises(DriverFailed, match=r"is not the same storage as before .*, or is not mounted"):
        pool.pool()
    assert list(share.iterdir()) == []
