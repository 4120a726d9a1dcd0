"""A repository in a bucket of S3 or of what speaks like it. With Object Lock, of each object that is written once the first
version counts: what is written or marked deleted later changes nothing."""

from __future__ import annotations

import contextlib
import email.utils
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from weft.backup.errors import ObjectMissing, refused, spool_full
from weft.backup.storage.contract import Storage, Stored, Upload
from weft.backup.storage.patience import Patience
from weft.backup.storage.s3_bounds import MOST_OBJECT_BYTES, Progress, bound_answers, goes_in_a_circle, read_object
from weft.backup.storage.s3_problems import EXISTS, code_of, explain_answer, explain_silence
from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import WeftError

_ONCE = ("packs/", "index/", "backups/", "trash/", "weft-backup")
_LOCK_UNKNOWN = {"ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "InvalidRequest"}
_NOT_LOCKED = {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"}  # S3's word, and radosgw's
_NEXT = {  # what the next page is asked for with, by what a page says of it
    "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
    "list_object_versions": {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"},
}
_NAMED = ("Contents", "Versions", "DeleteMarkers")  # what a page lists
T = TypeVar("T")


class S3Storage(Storage):
    """Objects are keys below ``prefix``. Credentials that aren't given are looked for where boto3 looks. ``ca``: certificates in
    PEM that the endpoint's may be signed by, instead of the machine's."""

    def __init__(
        self,
        url: str,
        bucket: str,
        settings: dict[str, str],
        credentials: tuple[str, str] | None,
        *,
        ca: str = "",
        report: Callable[[str], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.url, self._bucket, self._clock = url, bucket, clock or SystemClock()
        self._patience = Patience(self._clock, report)
        prefix = settings.get("prefix", "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        access, secret = credentials or (None, None)
        self._s3: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.get("endpoint"),
            region_name=settings.get("region", "us-east-1"),
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            verify=self._keep_ca(ca) if ca else None,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1 if report else 2, "mode": "standard"},
                # urllib3 takes this one for sending, too: a bucket that is slow takes nothing for a while.
                connect_timeout=30 if report else 4,
                read_timeout=60 if report else 20,
                request_checksum_calculation="when_required",  # older servers know no checksums
                response_checksum_validation="when_required",
            ),
        )
        bound_answers(self._s3, url)
        self.locks = self._find_lock()

    def _keep_ca(self, ca: str) -> str:
        """A path to it, as boto3 wants one: of a file in memory, which goes with this process."""
        self._ca = os.memfd_create("ca")
        os.write(self._ca, ca.encode())
        return f"/proc/self/fd/{self._ca}"

    def put(
        self,
        key: str,
        data: bytes,
        *,
        exclusive: bool = False,
        retain_until: float | None = None,
        durable: bool = True,
    ) -> str:
        extra: dict[str, Any] = {"IfNoneMatch": "*"} if exclusive else {}
        if exclusive:
            with contextlib.suppress(ObjectMissing):  # for servers that don't know the condition
                self.get(key, 0, 1)
                raise FileExistsError(key)
        version = self._put(key, lambda: data, retain_until, extra)
        if self.locks and not key.startswith(_ONCE):
            self._drop_older(key, version)
        return version

    def begin(self, key: str, owner: str) -> Upload:
        return _SpooledUpload(self, key)

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        if length == 0:
            return b""
        version = version or self._first_version(key)
        words: dict[str, Any] = {"VersionId": version} if version else {}
        if offset or length is not None:
            words["Range"] = f"bytes={offset}-" + (str(offset + length - 1) if length is not None else "")

        def read() -> bytes:
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + key, **words)
                return read_object(answer["Body"], key, MOST_OBJECT_BYTES if length is None else length, self.url)
            except ClientError as error:
                if code_of(error) == "InvalidRange":
                    return b""
                raise

        return self._ask(read, key)

    def list(self, prefix: str) -> Iterator[Stored]:
        if self.locks and prefix.startswith(_ONCE):
            yield from self._first_versions(prefix).values()
            return
        for page in self._pages("list_objects_v2", prefix):
            for found in page.get("Contents", []):
                yield Stored(found["Key"].removeprefix(self._prefix), found["Size"])

    def delete(self, key: str, version: str = "", *, durable: bool = True) -> None:
        """Delete the object; where versions are kept, all of them go, and marks of deletion."""
        name = self._prefix + key
        if not self.locks:
            self._ask(lambda: self._s3.delete_object(Bucket=self._bucket, Key=name), key, writes=True)
            return
        for page in self._pages("list_object_versions", key):
            for found in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if found["Key"] == name and version in ("", found["VersionId"]):
                    self._delete_version(key, found["VersionId"])

    def _delete_version(self, key: str, version: str) -> None:
        words = {"Bucket": self._bucket, "Key": self._prefix + key, "VersionId": version}
        self._ask(lambda: self._s3.delete_object(**words), key, writes=True)

    def _drop_older(self, key: str, version: str) -> None:
        """Versions of what is written again and again, like a lease, that its newest one replaced."""
        for page in self._pages("list_object_versions", key):
            for found in page.get("Versions", []):
                is_older = not found["IsLatest"] and found["VersionId"] != version
                if found["Key"] == self._prefix + key and is_older:
                    self._delete_version(key, found["VersionId"])

    def drop_uploads(self, owners: set[str], seen: set[str]) -> set[str]:
        return set()  # they lie on the writer's machine, without a name

    def retain(self, key: str, version: str, until: float) -> float:
        words = {"Bucket": self._bucket, "Key": self._prefix + key, "VersionId": version or self._first_version(key)}

        def ask() -> Any:
            try:
                return self._s3.get_object_retention(**words)["Retention"]
            except ClientError as error:
                if code_of(error) in _NOT_LOCKED:
                    return None
                raise

        if until:
            rule = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.fromtimestamp(until, UTC)}
            self._ask(lambda: self._s3.put_object_retention(**words, Retention=rule), key, writes=True)
        found = self._ask(ask, key)
        if found is None or found["Mode"] != "COMPLIANCE":
            return 0.0
        ends: datetime = found["RetainUntilDate"]
        return ends.timestamp()

    def clock_offset(self) -> float:
        def ask() -> float:
            headers = self._s3.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
            try:
                return email.utils.parsedate_to_datetime(headers["date"]).timestamp() - self._clock.now()
            except (KeyError, ValueError, TypeError):
                return 0.0  # a server that tells no time

        return self._ask(ask)

    def _put(self, key: str, body: Callable[[], object], retain_until: float | None, extra: dict[str, Any]) -> str:
        if retain_until is not None:
            ends = datetime.fromtimestamp(retain_until, UTC)
            extra |= {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": ends}
            extra["ChecksumAlgorithm"] = "SHA256"  # Object Lock asks for a checksum

        def put() -> Any:
            try:
                return self._s3.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body(), **extra)
            except ClientError as error:
                if code_of(error) in EXISTS:
                    raise FileExistsError(key) from error
                raise

        answer = self._ask(put, key, writes=True)
        return str(answer.get("VersionId", "")) if self.locks else ""

    def _find_lock(self) -> bool:
        def ask() -> bool:
            try:
                rule = self._s3.get_object_lock_configuration(Bucket=self._bucket)["ObjectLockConfiguration"]
            except ClientError as error:
                if code_of(error) in _LOCK_UNKNOWN:
                    return False
                raise
            return bool(rule.get("ObjectLockEnabled") == "Enabled")

        return self._ask(ask)

    def _first_version(self, key: str) -> str:
        if not self.locks or not key.startswith(_ONCE):
            return ""
        if (found := self._first_versions(key).get(key)) is None:
            raise ObjectMissing(key)
        return found.version

    def _first_versions(self, prefix: str) -> dict[str, Stored]:
        """The oldest version of each object below ``prefix``; servers list the newest first."""
        found: dict[str, Stored] = {}
        for page in self._pages("list_object_versions", prefix):
            for one in page.get("Versions", []):
                key = one["Key"].removeprefix(self._prefix)
                found[key] = Stored(key, one["Size"], one["VersionId"])
        return found

    def _pages(self, call: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Asked for one by one: a paginator of the library that met an outage takes its listing for ended."""
        ask, after, progress = getattr(self._s3, call), dict[str, str](), Progress(self.url)

        def read() -> dict[str, Any]:
            return dict(ask(Bucket=self._bucket, Prefix=self._prefix + prefix, **after))

        while True:
            page = self._ask(read, prefix)
            progress.note(one["Key"] for named in _NAMED for one in page.get(named, []))
            yield page
            after = {name: page[given] for name, given in _NEXT[call].items() if given in page}
            if not page.get("IsTruncated"):
                return
            if not after:
                raise refused(self.url, "a listing that is cut off, without where it goes on")

    def _ask(self, question: Callable[[], T], key: str = "", *, writes: bool = False) -> T:
        """The server's answer, waited for while it is away. Raises WeftError, ObjectMissing."""
        tries = 0
        while True:
            problem: WeftError | ObjectMissing
            try:
                answer = question()
            except ClientError as error:
                problem = explain_answer(self.url, error, key, writes=writes)
                cause: Exception = error
            except (BotoCoreError, RecursionError) as error:
                if goes_in_a_circle(error):
                    raise refused(self.url, "a redirect that leads back to it") from None
                assert isinstance(error, BotoCoreError)
                problem, cause = explain_silence(self.url, error), error
            else:
                self._patience.end()
                return answer
            tries += 1
            if not self._patience.wait(problem, tries):
                raise problem from cause


class _SpooledUpload(Upload):
    """A pack on this machine until it is complete: a bucket's objects are written in one go."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by commit and abandon

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise spool_full(tempfile.gettempdir(), error.strerror) from error

    def commit(self, retain_until: float | None = None) -> str:
        with self._file:
            return self._storage._put(self._key, self._begin, retain_until, {})

    def _begin(self) -> object:
        self._file.seek(0)
        return self._file

    def abandon(self) -> None:
        self._file.close()
