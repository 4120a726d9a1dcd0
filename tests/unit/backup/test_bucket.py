"""A repository in a bucket, with and without Object Lock, against a server that speaks S3's HTTP and is as strict about locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.long import mark_long
from tests.unit.backup.bucket import Bucket, Handler
from tests.unit.backup.lab import DAY, KEY, Time, load, random_chunks, store

from weft.backup.format import CHUNK, BackupManifest
from weft.backup.process.job import Job, JobLine
from weft.backup.process.worker import UID, BackupWorker
from weft.backup.repository import Repository
from weft.backup.storage import patience
from weft.backup.storage.place import open_place
from weft.contracts.clock import SystemClock
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, InvalidInput, Unavailable, WeftError
from weft.trust.ca import Authority


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.05, 0.1))


@pytest.fixture(params=mark_long([False, True], False), ids=["plain", "locked"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    server = Bucket(locks=request.param)
    yield server
    server.close()


def connect(bucket: Bucket, cache: Path, create: bool = False) -> Repository:
    clock = Time()
    clock.at = time.time()
    make = Repository.create if create else Repository.open
    return make(bucket.url, KEY, clock=clock, cache=cache, credentials=("key", "secret"))


def lock(repo: Repository, data: bytes, days: float, on: str | None = None) -> BackupManifest:
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
    assert repo.prune(grace=0).locked_backups == []
    again = [key for key, versions in bucket.keys.items() if len(versions) > 1]
    assert again == [], "what is written again leaves no older versions"
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


def check(bucket: Bucket, cache: Path, url: str = "", **more: Any) -> JobLine:
    job = Job(
        act="check", url=url or bucket.url, key="0f" * 32, cache=str(cache), credentials=("key", "s3cr3t"), **more
    )
    return BackupWorker(job, SystemClock(), print).run()


REFUSALS = {
    "InvalidAccessKeyId": ("bucketAccessKey", "access_key", "does not know the access key"),
    "SignatureDoesNotMatch": ("bucketSecretKey", "secret_key", "does not belong to its access key"),
    "NoSuchBucket": ("bucketNotFound", "spec.url", "names a bucket that does not exist"),
    "RequestTimeTooSkewed": ("clockSkew", "spec.url", "clocks"),
    "AuthorizationHeaderMalformed": ("bucketRegion", "spec.url", "in another region"),
    "AccessDenied": ("bucketDenied", "spec.url", "may not read"),
    "QuotaExceeded": ("repositoryFull", None, "is full"),
    "SomethingNew": ("bucketRefused", None, "refuses: SomethingNew"),
    "ServiceUnavailable": ("repositoryUnavailable", None, "can't be reached"),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_what_a_bucket_refuses_is_named_with_its_remedy_and_without_a_key(code: str, tmp_path: Path) -> None:
    bucket = Bucket(locks=False)
    bucket.refusal, bucket.refusals = code, 99
    token, field, words = REFUSALS[code]
    with pytest.raises(WeftError, match=words) as refused:
        check(bucket, tmp_path)
    assert (refused.value.token, refused.value.field) == (token, field) and refused.value.hint
    assert "s3cr3t" not in f"{refused.value}{refused.value.hint}{refused.value.details}"
    bucket.close()


def test_an_endpoint_that_is_not_there_or_not_trusted_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, SystemClock())
    bucket = Bucket(locks=False)
    plain = bucket.url
    with pytest.raises(Unavailable, match="does not speak TLS") as refused:
        check(bucket, tmp_path, plain.replace("http://", "https://"))
    assert refused.value.field == "spec.url"
    bucket.serve_tls(*authority.renew_server(["127.0.0.1"]))
    with pytest.raises(Unavailable, match=r"is not trusted: .*certificate") as refused:
        check(bucket, tmp_path)
    assert refused.value.field == "spec.ca" and "--ca FILE" in str(refused.value.hint)
    assert check(bucket, tmp_path, ca=authority.ca).repository_id
    bucket.close()
    with pytest.raises(Unavailable, match=r"can't be reached: .*Connection refused"):
        check(bucket, tmp_path, plain)
    with pytest.raises(Unavailable, match=r"Failed to resolve 'no\.such\.example'"):
        check(bucket, tmp_path, "s3://bucket?endpoint=http://no.such.example")
    with pytest.raises(InvalidInput, match="no bucket that could exist"):
        check(bucket, tmp_path, plain.replace("//bucket", "//Not_A_Bucket!"))


def test_a_bucket_whose_clock_is_far_off_is_refused_at_once(tmp_path: Path) -> None:
    bucket = Bucket(locks=False)
    bucket.clock_ahead = 3600
    with pytest.raises(Unavailable, match=r"differ by 3\d{3} s") as refused:
        check(bucket, tmp_path)
    assert refused.value.token == "clockSkew" and not bucket.keys
    bucket.close()


def test_work_waits_while_the_bucket_is_away_and_says_so(bucket: Bucket, tmp_path: Path) -> None:
    repo, data, said = connect(bucket, tmp_path / "a", create=True), random_chunks(20, 1), list[str]()
    made = store(repo, data)
    place = open_place(bucket.url, ("key", "secret"), report=said.append)
    patient = Repository.open_in(place, KEY, clock=SystemClock(), cache=tmp_path / "b")
    bucket.refusal, bucket.refusals = "ServiceUnavailable", 1
    assert load(patient, made) == data
    assert len(said) == 2 and "can't be reached: ServiceUnavailable" in said[0] and said[1] == ""
    bucket.refusal, bucket.refusals = "AccessDenied", 1
    with pytest.raises(Forbidden):  # waiting doesn't help
        patient.backups()
    assert len(said) == 2


def test_a_listing_that_an_outage_cuts_goes_on_where_it_was(bucket: Bucket, tmp_path: Path) -> None:
    """A clean-up that saw half of the leases and backups would delete what the others need."""
    said = list[str]()
    place = open_place(bucket.url, ("key", "secret"), report=said.append)
    keys = [f"{folder}/{n}" for folder in ("backups", "leases") for n in range(8)]
    for key in keys:
        place.put(key, b"x")
    found = list[str]()
    for folder in ("backups/", "leases/"):
        bucket.refusal, bucket.refusals = "ServiceUnavailable", 1
        for one in place.list(folder):
            found.append(one.key)
            if len(found) % 3 == 0:
                bucket.refusals = 1
    assert found == keys and len(said) >= 4


class StallingHandler(Handler):
    def handle_any(self) -> None:
        time.sleep(5 if self.command == "PUT" else 0)
        super().handle_any()

    do_GET = do_PUT = do_HEAD = handle_any


@pytest.mark.long
def test_a_bucket_that_takes_nothing_for_some_seconds_is_slow_and_not_away(tmp_path: Path) -> None:
    server, said = Bucket(locks=False, handler=StallingHandler), list[str]()
    place = open_place(server.url, ("key", "secret"), report=said.append)
    data = random_chunks(200, 1)
    place.put("packs/large", data)
    assert place.get("packs/large") == data and said == []
    server.close()


def test_a_lock_is_extended_with_all_that_the_backup_needs(bucket: Bucket, tmp_path: Path) -> None:
    if not bucket.locks:
        return
    repo = connect(bucket, tmp_path / "a", create=True)
    first = lock(repo, random_chunks(20, 1), 1)
    other = lock(repo, random_chunks(3, 5), 1)
    until = float(int(time.time() + 60 * DAY))
    assert repo.retain(first.id, until) == repo.locked_until(first.id) == until
    needed = {
        key.split("/")[2] for key, (one, *_) in bucket.keys.items() if one.until and one.until.timestamp() >= until
    }
    assert needed == {"backups", "packs", "index", "weft-backup"}
    assert repo.locked_until(other.id) < until
    assert repo.prune({first.id}, grace=0).locked_backups == [first.id]
    bucket.refuse_retention = True
    with pytest.raises(Unavailable, match="can't be locked"):
        repo.retain(first.id, until + 90 * DAY)


def test_a_backup_that_is_locked_is_not_forgotten_before_its_time(bucket: Bucket, tmp_path: Path) -> None:
    if not bucket.locks:
        return
    repo = connect(bucket, tmp_path / "a", create=True)
    with repo.write(keep_until=time.time() + DAY) as writer:
        writer.publish(kind="vm", name="web", labels={UID: "u1"})
    job = Job(
        act="forget", url=bucket.url, key=KEY._secret.hex(), cache=str(tmp_path), credentials=("k", "s"), backup="u1"
    )
    with pytest.raises(IllegalTransition, match=r"locked until 20\d\d-\d\d-\d\d .* UTC"):
        BackupWorker(job, SystemClock(), print).run()
    assert len(repo.backups().backups) == 1


def test_a_repository_that_shall_be_immutable_is_refused_where_nothing_is_locked(
    bucket: Bucket, tmp_path: Path
) -> None:
    if bucket.locks:
        assert check(bucket, tmp_path, immutable=True).repository_id
        return
    with pytest.raises(InvalidInput, match="can't be immutable: its bucket has no Object Lock") as refused:
        check(bucket, tmp_path, immutable=True)
    assert refused.value.field == "spec.immutable" and not bucket.keys
