"""What can go wrong with a repository. Each error names the repository and the remedy."""

from __future__ import annotations

from weft.objects.errors import AlreadyExists, Forbidden, InUse, NotFound, Unavailable


class ObjectMissing(Exception):
    """The storage has no object of that key; what that means is the caller's to judge."""


def repository_full(url: str, cause: object) -> Unavailable:
    return Unavailable(
        f"the backup repository {url} is full: {cause}",
        reason="repositoryFull",
        hint="free space there or delete old backups; what was written stays and the next backup uses it",
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


def no_repository(url: str) -> NotFound:
    return NotFound(
        f"{url} holds no backup repository",
        reason="repositoryNotFound",
        hint="check the address and that it is mounted; a new repository has to be created first",
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
