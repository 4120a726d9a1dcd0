"""Errors of a repository. Each error names the repository and the remedy."""

from __future__ import annotations

from weft.objects.errors import (
    AlreadyExists,
    BackupAltered,
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotFound,
    Unavailable,
    WeftError,
)

FULL, INCOMPLETE = "repositoryFull", "repositoryIncomplete"  # reasons


class ObjectMissing(Exception):
    """The storage has no object of that key; what that means is the caller's to judge."""


def repository_full(url: str, cause: object) -> Unavailable:
    return Unavailable(
        f"the backup repository {url} is full: {cause}",
        reason="repositoryFull",
        hint="free space there or delete old backups; a backup within a day uses the packs (64 MiB each) that were written "
        "whole, and the one that didn't fit is removed",
    )


def is_full(problem: WeftError) -> bool:
    return problem.token == FULL


def spool_full(folder: str, cause: object) -> Unavailable:
    return Unavailable(
        f"{folder} of this node has no space for 64 MiB on their way into a bucket: {cause}",
        reason="spoolFull",
        hint="free space there",
    )


def read_only(url: str, cause: object) -> Forbidden:
    return Forbidden(
        f"the backup repository {url} can't be written: {cause}",
        reason="repositoryReadOnly",
        hint="give weft write access to it; backups in it can still be restored",
    )


def unreachable(url: str, cause: object) -> Unavailable:
    return Unavailable(
        f"the backup repository {url} can't be reached: {cause}",
        reason="repositoryUnavailable",
        hint="check that it is mounted or that its server answers, then try again",
    )


def no_bucket(url: str) -> NotFound:
    return NotFound(
        f"{url} names a bucket that does not exist",
        reason="bucketNotFound",
        field="spec.url",
        hint="create the bucket, or delete this repository and create it again with the right URL",
    )


def wrong_region(url: str, cause: object) -> InvalidInput:
    return InvalidInput(
        f"the bucket of {url} is in another region: {cause}",
        reason="bucketRegion",
        field="spec.url",
        hint="give the bucket's region: s3://BUCKET?endpoint=URL&region=REGION",
    )


def bad_access_key(url: str, cause: object) -> Forbidden:
    return Forbidden(
        f"the server of {url} does not know the access key ({cause})",
        reason="bucketAccessKey",
        field="access_key",
        hint="give the bucket's own key: weft secret set SECRET, or create the repository again with the right one",
    )


def bad_secret_key(url: str, cause: object) -> Forbidden:
    return Forbidden(
        f"the secret key of {url} does not belong to its access key ({cause})",
        reason="bucketSecretKey",
        field="secret_key",
        hint="give the bucket's own key: weft secret set SECRET, or create the repository again with the right one",
    )


def denied(url: str, cause: object) -> Forbidden:
    return Forbidden(
        f"the access key may not read {url} ({cause})",
        reason="bucketDenied",
        field="spec.url",
        hint="check the bucket's name, and allow the key to list, read, write and delete in it, and to read its Object Lock",
    )


def untrusted(url: str, cause: object) -> Unavailable:
    return Unavailable(
        f"the certificate of {url} is not trusted: {cause}",
        reason="bucketCertificate",
        field="spec.ca",
        hint="give the certificate of the CA that signed it: --ca FILE",
    )


def no_tls(url: str) -> Unavailable:
    return Unavailable(
        f"the server of {url} does not speak TLS",
        reason="bucketCertificate",
        field="spec.url",
        hint="correct the endpoint's port; or write endpoint=http://… for a server without TLS",
    )


def clocks_differ(url: str, seconds: float | None) -> Unavailable:
    by = f" by {abs(seconds):.0f} s" if seconds is not None else " by more than the server accepts"
    return Unavailable(
        f"the clocks of {url} and of this machine differ{by}",
        reason="clockSkew",
        field="spec.url",
        hint="set both clocks by NTP: requests and locks hold by the server's clock",
    )


def refused(url: str, cause: object) -> Unavailable:
    return Unavailable(
        f"the server of {url} refuses: {cause}",
        reason="bucketRefused",
        hint="check that it is an S3 server and that the bucket is as it should be",
    )


def locked_until(what: str, date: str) -> IllegalTransition:
    return IllegalTransition(
        f"{what} is locked until {date}: nobody can delete it before",
        reason="backupLocked",
        hint="delete it after that; its repository is immutable",
    )


def no_repository(url: str) -> NotFound:
    return NotFound(
        f"{url} holds no backup repository",
        reason="repositoryNotFound",
        hint="check the address and that it is mounted; a new repository has to be created first",
    )


def header_lost(url: str) -> BackupAltered:
    return BackupAltered(
        f"{url} holds backups, but the header of their repository is gone, and its copy, too",
        reason="repositoryHeaderLost",
        hint="put back its object weft-backup; or have a cluster check it that backed up to it: its nodes know what was in it; "
        "a new repository takes an empty place",
    )


def header_altered(url: str) -> BackupAltered:
    return BackupAltered(
        f"the header of the backup repository {url} is damaged, and its copy is missing or damaged, too",
        hint="put back its object weft-backup; or have a cluster check it that backed up to it: its nodes know what was in it",
    )


def repository_exists(url: str) -> AlreadyExists:
    return AlreadyExists(
        f"{url} already holds a backup repository",
        reason="repositoryExists",
        hint="open it with its key, or choose an empty place",
    )


def wrong_key(url: str) -> Forbidden:
    return Forbidden(
        f"the key does not open the backup repository {url}",
        reason="repositoryKey",
        hint="use the key that the repository was created with, or its recovery copy; without it nobody can read the backups",
    )


def other_repository(url: str, expected: str, found: str) -> Forbidden:
    return Forbidden(
        f"{url} holds the backup repository {found}, not {expected}",
        reason="otherRepository",
        hint="another repository lies or is mounted at this address: correct the address, or name the repository that is there",
    )


def too_new(url: str, version: object) -> Forbidden:
    return Forbidden(
        f"the backup repository {url} has format {version}, which this weft can't read",
        reason="repositoryTooNew",
        hint="update weft on this machine",
    )


def busy(url: str, holder: str) -> InUse:
    return InUse(
        f"the backup repository {url} is being cleaned up by {holder}",
        reason="repositoryBusy",
        hint="try again when that has ended; backups and restores are not stopped by it",
    )
