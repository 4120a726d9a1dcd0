"""A process that does one piece of work on a repository: ``python -m weft.backup.process.worker``, for a node's agent.

Reads a Job from its standard input, as JSON; writes a Progress for each step and a Result at the end to its standard output, one
JSON object a line. Killed at any time it leaves nothing half-done that counts: the job is begun again. What it says in errors never
contains the key or credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from weft.backup.cleanup import CleanupReport
from weft.backup.errors import FULL, INCOMPLETE, locked_until
from weft.backup.format import CHUNK, BackupManifest
from weft.backup.index.catalogue import with_catalogue
from weft.backup.index.tree import count_chunks
from weft.backup.key import RepositoryKey
from weft.backup.process.job import BASE_GONE, OBJECTS, Job, JobDisk, JobLine, name_upload
from weft.backup.process.nbd import NbdClient
from weft.backup.process.nbd_server import NbdServer
from weft.backup.reader import STEP, SYNC_BYTES, BackupReader, Run
from weft.backup.repository import Repository
from weft.backup.retention import check_clock
from weft.backup.storage.place import open_place
from weft.backup.usage import Usage, find_usage
from weft.backup.writer import BackupWriter
from weft.contracts.clock import Clock, SystemClock
from weft.objects.errors import AlreadyExists, BackupAltered, InUse, InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.quantity import format_time

UID = "uid"  # the label with the uid of the Backup that a backup in the repository is of
BASE = "base"  # the label with the uid of the Backup that it continues; "": it is full
_READERS, _AHEAD = 2, 4  # steps that are read while one is written
_MOST_DAMAGED, _MOST_NAMED = 20, 3
_BUSY_TRIES, _BUSY_SECONDS = 40, 0.5
_NOTHING_FREED = (INCOMPLETE, FULL)  # all else goes on
_MOST_MANIFEST = 512 << 10  # bytes, as JSON


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        result = BackupWorker(job, SystemClock(), _send).run()
    except WeftError as problem:
        said = f"{problem.field}: {problem}" if problem.field and problem.field not in str(problem) else str(problem)
        said = f"{said}; {problem.hint}" if problem.hint else said
        result = JobLine(ended="failed", reason=problem.token, message=said)
    except OSError as problem:
        result = JobLine(ended="failed", reason="unavailable", message=f"{problem.strerror or problem}")
    _send(result)
    return 0


def _send(line: JobLine) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


class BackupWorker:
    def __init__(self, job: Job, clock: Clock, send: Callable[[JobLine], None]) -> None:
        self._job, self._clock, self._send = job, clock, send
        self._done, self._total, self._told = 0, 1, 0.0

    def run(self) -> JobLine:
        """Raises WeftError, OSError."""
        return with_catalogue(Path(self._job.cache), self._work)

    def _work(self, opened: Callable[[str], None]) -> JobLine:
        with self._open() as repository:
            opened(repository.id)
            match self._job.act:
                case "copy":
                    line = self._copy(repository)
                case "fetch":
                    line = self._fetch(repository)
                case "verify":
                    line = self._verify(repository)
                case "forget":
                    line = self._forget(repository)
                case "check":
                    line = self._check(repository)
                case "serve":
                    line = self._serve(repository)
                case "retain":
                    line = self._retain(repository)
                case "adopt":
                    line = self._adopt(repository)
            if self._job.act in ("copy", "forget"):
                self._count(repository, line)
            line.ended, line.repository_id = line.ended or "done", repository.id
            return line

    def _open(self) -> Repository:
        job, key = self._job, RepositoryKey(bytes.fromhex(self._job.key))
        cache = Path(job.cache)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        report = None if job.act in ("check", "serve") else self._report_waiting  # those are tried again anyway
        place = open_place(job.url, job.credentials, ca=job.ca, report=report)
        if job.act == "check":
            check_clock(place)
        if job.act == "check" and job.immutable and not place.locks:
            raise InvalidInput(
                f"{job.url} can't be immutable: its bucket has no Object Lock",
                field="spec.immutable",
                hint="create a bucket with Object Lock, which can't be switched on later; or leave --immutable out",
            )
        expected = job.repository_id or None
        try:
            return Repository.open_in(place, key, clock=self._clock, cache=cache, expected=expected)
        except NotFound:
            if expected is not None or job.opens_only or job.act != "check":
                raise
        with contextlib.suppress(AlreadyExists):  # another node was faster
            return Repository.create_in(place, key, clock=self._clock, cache=cache)
        return Repository.open_in(place, key, clock=self._clock, cache=cache)

    def _copy(self, repository: Repository) -> JobLine:
        job = self._job
        there = _find(repository, job.backup)
        if there is None:
            base = _find(repository, job.base) if job.base else None
            changed = base is not None and any(not disk.is_whole for disk in job.disks)
            self._total = max(1, sum(length for disk in job.disks for _, length, zero in disk.extents if not zero))
            with repository.write(base.id if base else None, job.keep_until or None) as writer:
                for disk in job.disks:
                    self._copy_disk(writer, disk, base)
                if job.objects:
                    data = job.objects.encode()
                    writer.disk(
                        OBJECTS, len(data), lambda offset, length: data[offset : offset + length].ljust(length, b"\0")
                    )
                for sha256, path in sorted(job.uploads.items()):
                    _store_file(writer, name_upload(sha256), Path(path))
                labels = {UID: job.backup, BASE: job.base if changed else ""}
                there = writer.publish(kind=job.kind, name=job.name, spec=job.manifest, labels=labels)
        continued = not job.base or there.labels.get(BASE) == job.base
        usage = _measure(repository, there)
        return JobLine(
            bytes=usage.used_bytes,
            stored_bytes=usage.stored_bytes,
            unique_bytes=usage.unique_bytes,
            locked_until=there.keep_until or 0.0,
            full_because="" if continued else "the backup before it could not be continued",
            disks={disk.name: disk.size for disk in there.disks},
        )

    def _count(self, repository: Repository, line: JobLine) -> None:
        """Count what is in the repository now."""
        backups = repository.backups().backups
        line.backups, line.kept_bytes = len(backups), sum(one.stored_bytes for one in backups)
        line.free = _find_free(self._job.url)

    def _copy_disk(self, writer: BackupWriter, disk: JobDisk, base: BackupManifest | None) -> None:
        """Whole, or what changed since the backup ``base``."""
        if not disk.is_whole and (base is None or base.disk(disk.name) is None):
            what = f"the backup to continue is not in {self._job.url} any more, or has no disk {disk.name}"
            raise NotFound(what, reason=BASE_GONE)
        previous = None if disk.is_whole else disk.name
        with NbdClient(disk.socket) as source:
            try:
                writer.disk(disk.name, disk.size, partial(self._read, source), disk.extents, previous)
            except BackupAltered as problem:
                if previous is None:
                    raise
                raise NotFound(f"the backup to continue is damaged: {problem}", reason=BASE_GONE) from None

    def _read(self, source: NbdClient, offset: int, length: int) -> bytes:
        """A chunk at the end of a disk may reach beyond what the server has, which counts in whole sectors."""
        data = source.read(offset, max(0, min(length, source.size - offset)))
        self._advance(length)
        return data.ljust(length, b"\0")

    def _fetch(self, repository: Repository) -> JobLine:
        there = require_backup(repository, self._job.backup)
        self._total = max(1, sum(disk.size for disk in self._job.disks))
        with repository.read(there.id) as reader:
            for disk in self._job.disks:
                with NbdClient(disk.socket) as target:
                    target.write_zeroes(0, disk.size)  # an image below would show through
                    written = 0
                    for length, runs in _read_ahead(reader, disk):
                        for offset, parts in runs:
                            target.write_parts(offset, parts)
                            written += len(parts) * CHUNK
                        if written >= SYNC_BYTES:
                            target.begin_flush()
                            written = 0
                        self._advance(length)
                    target.flush()
        return JobLine(disks={disk.name: disk.size for disk in there.disks})

    def _serve(self, repository: Repository) -> JobLine:
        """Serve until it is killed."""
        there, job = require_backup(repository, self._job.backup), self._job
        with repository.read(there.id) as reader:
            disks = {disk.name: disk.size for disk in there.disks}
            for disk in disks:
                reader.tree(disk)
            server = NbdServer(job.serve_at, disks, job.serve_to, reader.read, self._note_waiting)
            self._send(JobLine(message=""))
            server.serve()
        return JobLine()

    def _note_waiting(self, why: str) -> None:
        self._send(JobLine(reason="repositoryWaits" if why else "", message=why))

    def _verify(self, repository: Repository) -> JobLine:
        try:
            there = require_backup(repository, self._job.backup)
        except NotFound as gone:  # nobody can restore it: that is a verdict
            return JobLine(ended="failed", reason="backupDamaged", damaged=[str(gone)], message=str(gone))
        found = repository.verify([there.id])
        line = JobLine(unique_bytes=_measure(repository, there).unique_bytes if there.id not in found.damaged else 0)
        line.message = next((one.message for one in found.damages if one.what == "index"), "")  # which harms none
        if there.id in found.damaged:
            named = [f"{one.what} {one.name}" + (f" at {one.offset}" if one.offset else "") for one in found.damages]
            line = JobLine(ended="failed", reason="backupDamaged", damaged=named[:_MOST_DAMAGED], message=named[0])
        return line

    def _adopt(self, repository: Repository) -> JobLine:
        there = require_backup(repository, self._job.backup)
        manifest = there.spec if isinstance(there.spec, dict) else {}
        if len(msgspec.json.encode(manifest)) > _MOST_MANIFEST:
            raise InvalidInput("what the repository says of the backup is too large", hint="restore another one")
        usage = _measure(repository, there)
        return JobLine(
            bytes=usage.used_bytes,
            stored_bytes=usage.stored_bytes,
            unique_bytes=usage.unique_bytes,
            disks={disk.name: disk.size for disk in there.disks},
            manifest=manifest,
        )

    def _forget(self, repository: Repository) -> JobLine:
        there = _find(repository, self._job.backup)
        name = there.id if there is not None else repository.recall(UID, self._job.backup)
        if name is None:
            return JobLine()
        try:
            report = self._prune(repository, name)
        except (BackupAltered, Unavailable) as problem:
            # Another backup is damaged or missing, or all is full: then no space is freed, but this one may be gone.
            stays = not isinstance(problem, BackupAltered) and problem.token not in _NOTHING_FREED
            if stays or repository.recall(UID, self._job.backup) is not None:
                raise
            return JobLine()
        if name in report.locked_backups:
            raise locked_until("it", format_time(repository.locked_until(name)))
        return JobLine()

    def _retain(self, repository: Repository) -> JobLine:
        return JobLine(
            locked_until=repository.retain(require_backup(repository, self._job.backup).id, self._job.keep_until)
        )

    def _report_waiting(self, why: str) -> None:
        done = round(min(1.0, self._done / self._total), 2)
        self._send(
            JobLine(progress=done, reason="repositoryWaits" if why else "", message=f"waits: {why}" if why else "")
        )

    def _prune(self, repository: Repository, backup: str) -> CleanupReport:
        """Another node may be cleaning up, as when several backups are deleted together: that takes moments."""
        for _ in range(_BUSY_TRIES):
            try:
                return repository.prune([backup], missing=[backup])
            except InUse:
                asyncio.run(self._clock.sleep(_BUSY_SECONDS))
        return repository.prune([backup], missing=[backup])

    def _check(self, repository: Repository) -> JobLine:
        """A repository in which a backup is damaged or missing, or that is full, still takes others, or gives them back."""
        left = ""
        try:
            repository.prune()
        except (BackupAltered, InUse, Unavailable) as problem:
            if isinstance(problem, Unavailable) and problem.token not in _NOTHING_FREED:
                raise
            left = f"no space was freed: {problem}" + (f"; {problem.hint}" if problem.token == INCOMPLETE else "")
        backups = repository.backups().backups
        return JobLine(
            backups=len(backups),
            bytes=sum(one.stored_bytes for one in backups),
            free=_find_free(self._job.url),
            message=left,
        )

    def _advance(self, count: int) -> None:
        self._done += count
        now = self._clock.elapsed()
        if now - self._told > 0.5:
            self._told = now
            self._send(JobLine(progress=round(min(1.0, self._done / self._total), 2)))


def _store_file(writer: BackupWriter, name: str, path: Path) -> None:
    with path.open("rb") as file:
        writer.disk(name, os.fstat(file.fileno()).st_size, lambda at, length: os.pread(file.fileno(), length, at))


def _read_ahead(reader: BackupReader, disk: JobDisk) -> Iterator[tuple[int, list[Run]]]:
    """The disk in steps: the length of each, and its runs of data by offset. The next ones are read and decrypted while one is
    written."""
    under_way: deque[tuple[int, Future[list[Run]]]] = deque()
    chunks = count_chunks(disk.size)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="fetch") as pool:
        for first in range(0, chunks, STEP):
            count = min(STEP, chunks - first)
            under_way.append((count * CHUNK, pool.submit(reader.read_data, disk.name, first, count)))
            if len(under_way) > _AHEAD:
                length, read = under_way.popleft()
                yield length, read.result()
        for length, read in under_way:
            yield length, read.result()


def _measure(repository: Repository, backup: BackupManifest) -> Usage:
    """Measure what the backup takes up. What it shares with others isn't known while one of them is damaged: ``unique_bytes`` is 0
    then."""
    try:
        return repository.usage()[backup.id]
    except BackupAltered:
        return find_usage(backup, 0)


def _find(repository: Repository, uid: str) -> BackupManifest | None:
    return next((one for one in repository.backups().backups if one.labels.get(UID) == uid), None)


def require_backup(repository: Repository, uid: str) -> BackupManifest:
    listing = repository.backups()
    there = next((one for one in listing.backups if one.labels.get(UID) == uid), None)
    if there is None:
        damaged = ", ".join(one.name for one in listing.damages[:_MOST_NAMED])
        or_damaged = f", or it is one of those whose manifest is damaged: {damaged}" if damaged else ""
        raise NotFound(
            f"the backup is not in {repository.url} any more{or_damaged}",
            reason="backupGone",
            hint="choose another one",
        )
    return there


def _find_free(url: str) -> int:
    if not url.startswith("dir://"):
        return -1
    found = os.statvfs(url.removeprefix("dir://"))
    return found.f_bavail * found.f_frsize


if __name__ == "__main__":
    sys.exit(main())
