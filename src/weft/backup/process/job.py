"""Messages between a node's agent and the process that works on a repository: a Job in, Lines out."""

from __future__ import annotations

import struct
from typing import Any, Literal

import msgspec

HEAD = struct.Struct(">cI")  # of a frame with a piece of a file, or with the end: which of these it is, and its length
DATA, END = b"D", b"E"
OBJECTS = "objects"
_UPLOAD = "upload-"
BASE_GONE = "baseGone"  # make the copy without the backup that it was to continue


def name_upload(sha256: str) -> str:
    """The name that the repository gives to an uploaded file among the disks of a project's backup."""
    return _UPLOAD + sha256


class JobDisk(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    socket: str
    size: int
    extents: list[tuple[int, int, bool]] = []  # to copy
    is_whole: bool = True  # they are all that holds data, not what changed


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    act: Literal["copy", "fetch", "verify", "forget", "check", "serve", "retain", "adopt"]
    url: str
    key: str  # hexadecimal digits
    cache: str  # a folder for catalogues
    credentials: tuple[str, str] | None = None
    ca: str = ""  # PEM
    repository_id: str = ""  # that it must have; "": a check gives one to a place without a repository
    opens_only: bool = False  # which then fails
    backup: str = ""  # uid
    base: str = ""  # uid
    name: str = ""
    kind: str = ""
    manifest: dict[str, Any] = {}
    disks: list[JobDisk] = []
    objects: str = ""  # of a project, as JSON: stored like a disk, named OBJECTS
    uploads: dict[str, str] = {}  # the files that these name, by SHA-256: each is stored like a disk, too
    keep_until: float = 0.0
    immutable: bool = False  # check: that the place can lock what is stored there
    serve_at: str = ""  # name of a socket in no folder
    serve_to: list[int] = []  # the users that may connect

    @property
    def secrets(self) -> list[str]:
        """Secrets that nobody else may read."""
        return [self.key, *(self.credentials or ())]

    def __repr__(self) -> str:
        return f"Job({self.act})"


class JobLine(msgspec.Struct, omit_defaults=True):
    """Progress while ``ended`` is "", then the result."""

    ended: Literal["", "done", "failed"] = ""
    progress: float = 0.0
    repository_id: str = ""
    backups: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    unique_bytes: int = 0
    locked_until: float = 0.0
    free: int = -1
    kept_bytes: int = -1
    full_because: str = ""
    disks: dict[str, int] = {}
    manifest: dict[str, Any] = {}
    damaged: list[str] = []
    reason: str = ""
    message: str = ""


class FilesJob(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The job of ``backup.process.files``."""

    act: Literal["list", "read", "tree", "objects", "upload", "contents"]
    url: str
    key: str  # hexadecimal digits
    cache: str  # a folder for catalogues
    credentials: tuple[str, str] | None = None
    ca: str = ""  # PEM
    repository_id: str = ""
    backup: str = ""  # uid
    disk: str = ""
    partition: int = -1  # -1: the largest that can be read
    path: str = ""

    @property
    def secrets(self) -> list[str]:
        """Secrets that nobody else may read."""
        return [self.key, *(self.credentials or ())]

    def __repr__(self) -> str:
        return f"FilesJob({self.act})"


class FilesEnd(msgspec.Struct, frozen=True, omit_defaults=True):
    note: str = ""  # what people should know of the answer
    error: dict[str, Any] = {}  # the WeftError, as it goes over the wire
