"""A process that reads single files or a project's objects out of a backup, or lists what a repository has, for a node's agent:
``python -m weft.backup.process.files``.

Reads a FilesJob from its standard input, as JSON. Writes the answer to its standard output, in frames of five bytes of head (what
it is, its length) and a body: ``D`` a piece, ``E`` the end as a FilesEnd. What the disk holds is read by a process without rights.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import msgspec

from weft.backup.files.browse import DiskQuestion
from weft.backup.files.confined import Confined
from weft.backup.format import BackupManifest
from weft.backup.index.catalogue import drop_catalogue, explain_catalogue, is_damaged
from weft.backup.key import RepositoryKey
from weft.backup.process.job import DATA, END, HEAD, OBJECTS, FilesEnd, FilesJob, name_upload
from weft.backup.process.worker import UID, require_backup
from weft.backup.repository import Repository
from weft.backup.storage.place import open_place
from weft.contracts.clock import SystemClock
from weft.objects.errors import NotFound, WeftError

_PIECE = 1 << 20


def main() -> int:
    confined = Confined()
    try:
        job = msgspec.json.decode(sys.stdin.buffer.read(), type=FilesJob)
        with contextlib.suppress(OSError):
            os.nice(10)
        end = FilesEnd(note=run(job, confined))
    except WeftError as problem:
        end = FilesEnd(error=problem.to_dict())
    except OSError as problem:
        end = FilesEnd(error={"reason": "unavailable", "message": f"{problem.strerror or problem}"})
    finally:
        confined.end()
    _write(END, msgspec.json.encode(end))
    return 0


def run(job: FilesJob, confined: Confined) -> str:
    """Run the job and write the answer. Returns what people should know of it. Raises WeftError, OSError."""
    try:
        return _run(job, confined)
    except sqlite3.Error as problem:
        if is_damaged(problem):  # the next who asks makes it again
            drop_catalogue(Path(job.cache), job.repository_id)
        raise explain_catalogue(problem, Path(job.cache)) from problem


def _run(job: FilesJob, confined: Confined) -> str:
    cache = Path(job.cache)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = RepositoryKey(bytes.fromhex(job.key))
    place = open_place(job.url, job.credentials, ca=job.ca)
    expected = job.repository_id or None
    with Repository.open_in(place, key, clock=SystemClock(), cache=cache, expected=expected) as repository:
        if job.act == "contents":
            for one in sorted(repository.backups().backups, key=lambda one: one.created):
                _write(DATA, msgspec.json.encode(_describe(one)) + b"\n")
            return ""
        there = require_backup(repository, job.backup)
        if job.act == "objects" or job.act == "upload":  # not "in": the types follow from it
            return _write_whole(repository, there, OBJECTS if job.act == "objects" else name_upload(job.path))
        disk = there.disk(job.disk)
        if disk is None and job.disk == "root" and len(there.disks) == 1:  # of a volume
            disk = there.disks[0]
        if disk is None:
            names = ", ".join(one.name for one in there.disks)
            raise NotFound(f"the backup has no disk {job.disk[:80]}", field="disk", hint=f"its disks: {names}")
        question = DiskQuestion(act=job.act, path=job.path, partition=job.partition, size=disk.size)
        with repository.read(there.id) as reader:
            return confined.run(
                question,
                lambda offset, length: reader.read(disk.name, offset, length),
                lambda piece: _write(DATA, piece),
            )


def _describe(there: BackupManifest) -> dict[str, Any]:
    """Describe a backup for people before they adopt it."""
    said = there.spec if isinstance(there.spec, dict) else {}
    project, _, name = there.name.partition("/")
    return {
        "uid": there.labels.get(UID, ""),
        "project": project,
        "name": name,
        "of": str(said.get("of", "")),
        "set": str(said.get("set", "")),
        "taken_at": said.get("taken_at") or there.created,
        "bytes": there.bytes,
    }


def _write_whole(repository: Repository, there: BackupManifest, name: str) -> str:
    disk = there.disk(name)
    if disk is None and name != OBJECTS:
        raise NotFound("the backup has no such file", reason="uploadMissing", hint="upload it again")
    if disk is None:
        raise NotFound("the backup has no objects of a project", hint="weft backup list shows what each is of")
    with repository.read(there.id) as reader:
        for offset in range(0, disk.size, _PIECE):
            _write(DATA, reader.read(name, offset, min(_PIECE, disk.size - offset)))
    return ""


def _write(kind: bytes, body: bytes) -> None:
    sys.stdout.buffer.write(HEAD.pack(kind, len(body)) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
