"""A repository in a bucket, with and without Object Lock, against a server that speaks S3's HTTP and is as strict about locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.backup.bucket import Bucket
from tests.unit.backup.lab import DAY, KEY, Time, load, random_chunks, store

from weft.backup.format import CHUNK, Manifest
from weft.backup.process.job import Job
from weft.backup.process.worker import Worker
from weft.backup.repository import Repository
from weft.contracts.clock import SystemClock
from weft.objects.errors import AlreadyExists, InvalidInput


@pytest.fixture(params=[False, True], ids=["plain", "locked"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    server = Bucket(locks=request.param)
    yield server
    server.shutdown()
    server.server_close()


def connect(bucket: Bucket, cache: Path, create: bool = False) -> Repository:
    clock = Time()
    clock.at = time.time()
    make = Repository.create if create else Repository.open
    return make(bucket.url, KEY, clock=clock, cache=cache, credentials=("key", "secret"))


def lock(repo: Repository, data: bytes, days: float, on: str | None = None) -> Manifest:
    with repo.write(previous=on, keep_until=time.time() + days * DAY) as writer:
        changes = [(0, CHUNK, False)] if on else None
        writer.disk("root", len(data), lambda at, n: data[at : at + n], changes, "root" if on else None)
        return writer.publish(kind="vm", name="web")


def test_a_bucket_keeps_what_a_folder_keeps(bucket: Bucket, tmp_path: Path) -> None:
    repo = connect(bucket, tmp_path / "a", create=True)
    with pytest.raises(AlreadyExists):
        connect(bucket, tmp_path / "a", create=True)
    data = random_chunks(20, 1)
    made = [store(repo, data + random_chunks(1, n)) for n in range(2, 7)]
    other = connect(bucket, tmp_path / "b")
    assert {one.id for one in other.backups().backups} == {one.id for one in made}
    assert load(other, made[-1]) == data + random_chunks(1, 6)
    assert len(other.verify().sound) == 5
    other.prune({one.id for one in made[:-1]}, grace=0)
    assert other.prune(grace=0).deleted_packs == 3
    assert load(connect(bucket, tmp_path / "c"), made[-1]) == data + random_chunks(1, 6)


def test_a_lock_holds_against_a_clean_up_and_a_thief(bucket: Bucket, tmp_path: Path) -> None:
    repo, data = connect(bucket, tmp_path / "a", create=True), random_chunks(20, 1)
    if not bucket.locks:
        with pytest.raises(InvalidInput, match="can't lock"):
            lock(repo, data, 10)
        return
    made = lock(repo, data, 10)
    assert repo.prune({made.id}, grace=0).locked_backups == [made.id]
    thief = connect(bucket, tmp_path / "b")._storage
    for key in (f"backups/{made.id}", *(found.key for found in list(thief.list("packs/")))):
        thief._s3.put_object(Bucket="bucket", Key=f"a/b/{key}", Body=b"mine")  # type: ignore[attr-defined]
        thief._s3.delete_object(Bucket="bucket", Key=f"a/b/{key}")  # type: ignore[attr-defined]
    fresh = connect(bucket, tmp_path / "c")
    assert load(fresh, made) == data and fresh.verify().damaged == []


def test_an_older_pack_is_extended_or_its_chunks_are_stored_again(bucket: Bucket, tmp_path: Path) -> None:
    if not bucket.locks:
        return
    repo, data = connect(bucket, tmp_path / "a", create=True), random_chunks(20, 1)
    first = lock(repo, data, 1)
    second = lock(repo, random_chunks(1, 2) + data[CHUNK:], 100, first.id)
    ends = [
        versions[0].until.timestamp() for key, versions in bucket.keys.items() if "/packs/" in key and versions[0].until
    ]
    assert len(ends) == 2 and min(ends) >= time.time() + 100 * DAY
    bucket.refuse_retention = True
    third = lock(repo, data, 500)
    assert third.stored_bytes > 20 * CHUNK > second.stored_bytes
    assert load(connect(bucket, tmp_path / "b"), third) == data


def test_a_repository_that_shall_be_immutable_is_refused_where_nothing_is_locked(
    bucket: Bucket, tmp_path: Path
) -> None:
    job = Job(
        act="check",
        url=bucket.url,
        key="0f" * 32,
        cache=str(tmp_path),
        credentials=("key", "secret"),
        immutable=True,
    )
    if bucket.locks:
        assert Worker(job, SystemClock(), print).run().repository_id
        return
    with pytest.raises(InvalidInput, match="can't be immutable: its bucket has no Object Lock") as refused:
        Worker(job, SystemClock(), print).run()
    assert refused.value.field == "spec.immutable" and not bucket.keys
