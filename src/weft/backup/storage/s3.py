"""A repository in a bucket of S3 or of what speaks like it. With Object Lock, of each object that is written once the first
version counts: what is written or marked deleted later changes nothing."""

from __future__ import annotations

import contextlib
import email.utils
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from weft.backup.errors import ObjectMissing, no_repository, read_only, repository_full, unreachable
from weft.backup.storage.contract import Storage, Stored, Upload
from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import WeftError

_ONCE = ("packs/", "index/", "backups/", "trash/", "weft-backup")
_MISSING = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_FULL = {"QuotaExceeded", "EntityTooLarge", "InsufficientCapacity"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict"}


class S3Storage(Storage):
    """Objects are keys below ``prefix``. Credentials that aren't given are looked for where boto3 looks."""

    def __init__(
        self,
        url: str,
        bucket: str,
        settings: dict[str, str],
        credentials: tuple[str, str] | None,
        clock: Clock | None = None,
    ) -> None:
        self.url, self._bucket, self._clock = url, bucket, clock or SystemClock()
        prefix = settings.get("prefix", "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        access, secret = credentials or (None, None)
        self._s3: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.get("endpoint"),
            region_name=settings.get("region", "us-east-1"),
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 4, "mode": "standard"},
                connect_timeout=10,
                read_timeout=60,
                request_checksum_calculation="when_required",  # older servers know no checksums
                response_checksum_validation="when_required",
            ),
        )
        self.locks = self._find_lock()

    def put(self, key: str, data: bytes, *, exclusive: bool = False, retain_until: float | None = None) -> str:
        extra: dict[str, Any] = {"IfNoneMatch": "*"} if exclusive else {}
        if exclusive:
            with contextlib.suppress(ObjectMissing):  # for servers that don't know the condition
                self.get(key, 0, 1)
                raise FileExistsError(key)
        return self._put(key, data, retain_until, extra)

    def begin(self, key: str, owner: str) -> Upload:
        return _SpooledUpload(self, key)

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        if length == 0:
            return b""
        version = version or self._first_version(key)
        words: dict[str, Any] = {"VersionId": version} if version else {}
        if offset or length is not None:
            words["Range"] = f"bytes={offset}-" + (str(offset + length - 1) if length is not None else "")
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + key, **words)
            return bytes(answer["Body"].read())
        except ClientError as error:
            if _code(error) == "InvalidRange":
                return b""
            raise self._explain(error, key) from error
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error

    def list(self, prefix: str) -> Iterator[Stored]:
        if self.locks and prefix.startswith(_ONCE):
            yield from self._first_versions(prefix).values()
            return
        for page in self._pages("list_objects_v2", prefix):
            for found in page.get("Contents", []):
                yield Stored(found["Key"].removeprefix(self._prefix), found["Size"])

    def delete(self, key: str, version: str = "") -> None:
        """Where versions are kept all of them go, and marks of deletion."""
        try:
            if not self.locks:
                self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + key)
                return
            for page in self._pages("list_object_versions", key):
                for found in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                    if found["Key"] == self._prefix + key and version in ("", found["VersionId"]):
                        self._s3.delete_object(Bucket=self._bucket, Key=found["Key"], VersionId=found["VersionId"])
        except ClientError as error:
            raise self._explain(error, key) from error
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error

    def drop_uploads(self, owners: set[str], seen: set[str]) -> set[str]:
        return set()  # they lie on the writer's machine, without a name

    def retain(self, key: str, version: str, until: float) -> float:
        words = {"Bucket": self._bucket, "Key": self._prefix + key, "VersionId": version or self._first_version(key)}
        try:
            if until:
                rule = {"Mode": "COMPLIANCE", "RetainUntilDate": datetime.fromtimestamp(until, UTC)}
                self._s3.put_object_retention(**words, Retention=rule)
            rule = self._s3.get_object_retention(**words)["Retention"]
        except ClientError as error:
            if _code(error) == "NoSuchObjectLockConfiguration":
                return 0.0
            raise self._explain(error, key) from error
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error
        ends: datetime = rule["RetainUntilDate"]
        return ends.timestamp() if rule["Mode"] == "COMPLIANCE" else 0.0

    def clock_offset(self) -> float:
        try:
            headers = self._s3.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
            return email.utils.parsedate_to_datetime(headers["date"]).timestamp() - self._clock.now()
        except ClientError as error:
            raise self._explain(error, "") from error
        except (BotoCoreError, KeyError, ValueError) as error:
            raise unreachable(self.url, error) from error

    def _put(self, key: str, body: object, retain_until: float | None, extra: dict[str, Any]) -> str:
        if retain_until is not None:
            ends = datetime.fromtimestamp(retain_until, UTC)
            extra |= {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": ends}
            extra["ChecksumAlgorithm"] = "SHA256"  # Object Lock asks for a checksum
        try:
            answer = self._s3.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=body, **extra)
        except ClientError as error:
            if _code(error) in _EXISTS:
                raise FileExistsError(key) from error
            raise self._explain(error, key) from error
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error
        return str(answer.get("VersionId", "")) if self.locks else ""

    def _find_lock(self) -> bool:
        try:
            rule = self._s3.get_object_lock_configuration(Bucket=self._bucket)["ObjectLockConfiguration"]
            return bool(rule.get("ObjectLockEnabled") == "Enabled")
        except ClientError as error:
            if _code(error) in {"NoSuchBucket"} | _DENIED:
                raise self._explain(error, "") from error
            return False  # it has none, or its server doesn't know what that is
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error

    def _first_version(self, key: str) -> str:
        if not self.locks or not key.startswith(_ONCE):
            return ""
        if (found := self._first_versions(key).get(key)) is None:
            raise ObjectMissing(key)
        return found.version

    def _first_versions(self, prefix: str) -> dict[str, Stored]:
        """Of each object below ``prefix`` the oldest version; servers list the newest first."""
        found: dict[str, Stored] = {}
        for page in self._pages("list_object_versions", prefix):
            for one in page.get("Versions", []):
                key = one["Key"].removeprefix(self._prefix)
                found[key] = Stored(key, one["Size"], one["VersionId"])
        return found

    def _pages(self, call: str, prefix: str) -> Iterator[dict[str, Any]]:
        try:
            yield from self._s3.get_paginator(call).paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        except ClientError as error:
            raise self._explain(error, prefix) from error
        except BotoCoreError as error:
            raise unreachable(self.url, error) from error

    def _explain(self, error: ClientError, key: str) -> Exception:
        code = _code(error)
        if code in _MISSING and key:
            return ObjectMissing(key)
        known: WeftError
        if code == "NoSuchBucket":
            known = no_repository(self.url)
        elif code in _FULL:
            known = repository_full(self.url, code)
        elif code in _DENIED:
            known = read_only(self.url, code)
        else:
            known = unreachable(self.url, error)
        return known


class _SpooledUpload(Upload):
    """A pack on this machine until it is complete: a bucket's objects are written in one go."""

    def __init__(self, storage: S3Storage, key: str) -> None:
        self._storage, self._key = storage, key
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by commit and abandon

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise repository_full(tempfile.gettempdir(), error.strerror) from error

    def commit(self, retain_until: float | None = None) -> str:
        self._file.seek(0)
        with self._file:
            return self._storage._put(self._key, self._file, retain_until, {})

    def abandon(self) -> None:
        self._file.close()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
