"""The audit log of one server: appends records to files, chained, and forgets old files whole.

A record outlives the process once the kernel has it: ``append`` returns then, and ``gather`` writes all records of one turn of the
loop together. A thread brings what was written to the disk, twice a second. On a full disk a reserve is given up for the requests
in hand; later ones are refused before they change anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import weft
from weft.contracts.clock import Clock
from weft.contracts.durable_file import sync_folder
from weft.contracts.store import StoreFull
from weft.objects.errors import InUse, Unavailable
from weft.telemetry.audit.bound import Bound
from weft.telemetry.audit.files import find_last, list_files, list_torn, name_file, verify_files
from weft.trust.audit_chain import AuditActor, AuditOutcome, AuditRecord, AuditVerdict, Link, seal_record

FILE_BYTES = 16 << 20
KEEP_SECONDS = 365 * 86400.0
KEEP_BYTES = 4 << 30
SYNC_SECONDS = 0.5
RESERVE_BYTES = 1 << 20
MOST_GATHERED = 64  # records that are written together
_RESERVE, _LOCK = "reserve", "lock"
_SERVER = AuditActor(kind="server", name="api")
Note = Literal["start", "stop", "forget", "lost", "notRecorded"]
_OUTCOMES: dict[Note, AuditOutcome] = {
    "start": "allowed",
    "stop": "allowed",
    "forget": "allowed",  # old files were removed
    "lost": "failed",  # records couldn't be written
    "notRecorded": "refused",  # requests beyond what is recorded of one address
}
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.write.argtypes, _libc.write.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t
_log = logging.getLogger("weft.audit")


class AuditLog:
    """The log in ``folder``. Files begin anew at ``file_bytes`` and each day; the oldest go when they are older than
    ``keep_seconds``, or all are larger than ``keep_bytes``. All but ``verify`` is called from one thread. ``on_line`` gets each
    record's line, and returns at once."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        keep_seconds: float = KEEP_SECONDS,
        keep_bytes: int = KEEP_BYTES,
        file_bytes: int = FILE_BYTES,
        on_line: Callable[[bytes, AuditRecord], None] | None = None,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._keep_seconds, self._keep_bytes, self._file_bytes = keep_seconds, keep_bytes, file_bytes
        self._on_line = on_line
        self._chain, self._sequence, self._hash = "", 0, ""
        self._file, self._size, self._day = -1, 0, ""
        self._second, self._text = -1, ""
        self._has_reserve = False
        self._lost = 0  # records that couldn't be written
        self._gathered: list[tuple[Sequence[AuditRecord], asyncio.Future[None]]] = []
        self._bound = Bound()
        self._readers = 0  # that follow the whole chain: no file goes meanwhile
        self._lock = -1
        self._unsynced = threading.Event()
        self._closed = threading.Event()
        self._guard = threading.Lock()  # of the descriptors, towards the thread
        self._old: list[int] = []  # files that are complete but not yet on the disk
        self._thread = threading.Thread(target=self._keep_syncing, name="audit", daemon=True)

    @property
    def head(self) -> Link | None:
        """The newest record."""
        return Link(self._sequence, self._chain, "", self._hash) if self._sequence else None

    def open(self) -> None:
        """Go on where the log ends. Raises InUse if another process writes it, Unavailable."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            before = list_torn(self.folder)
            last = find_last(self.folder)
            torn = sorted(path.name for path in list_torn(self.folder) - before)
            self._chain, self._sequence, self._hash = (
                (secrets.token_hex(8), 0, "") if last is None else (last.chain, last.sequence, last.hash)
            )
            self._reserve()
            self._thread.start()
            note = f", an unfinished record was put aside in {', '.join(torn)}" if torn else ""
            self.note("start", f"weft {weft.__version__} begins to write{note}")
        except OSError as problem:
            raise _unwritable(self.folder, problem) from None

    def require_space(self) -> None:
        """Raise StoreFull or Unavailable if the next record might not be written: call it before what the record is about."""
        if not self._has_reserve:
            try:
                self._reserve()
            except OSError as problem:
                raise _unwritable(self.folder, problem) from None
        if self._lost:
            lost, self._lost = self._lost, 0
            try:
                self.note("lost", f"{lost} records could not be written", count=lost)
            except Unavailable:
                self._lost = lost
                raise

    def append(self, record: AuditRecord) -> None:
        """Write ``record``, which gets its number, time and hash here. Raises Unavailable, and then it isn't in the log."""
        self._append_all([record])

    def gather(self, records: Sequence[AuditRecord]) -> asyncio.Future[None]:
        """Write ``records`` as ``append`` does, when this turn of the running loop ends, with all others of the turn: done then."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        if not self._gathered:
            loop.call_soon(self._write_gathered)
        self._gathered.append((records, written))
        if len(self._gathered) >= MOST_GATHERED:
            self._write_gathered()
        return written

    def _write_gathered(self) -> None:
        gathered, self._gathered = self._gathered, []
        problem: Unavailable | None = None
        try:
            self._append_all([record for records, _ in gathered for record in records])
        except Unavailable as found:
            problem = found
        for _, written in gathered:
            if written.done():
                continue  # its request was cancelled
            if problem is None:
                written.set_result(None)
            else:
                written.set_exception(problem)

    def _append_all(self, records: Sequence[AuditRecord]) -> None:
        """Write all of ``records``, or none of them. Raises Unavailable."""
        at = self._show(self._clock.now())
        sequence, last, lines = self._sequence, self._hash, []
        for record in records:
            sequence += 1
            record.sequence, record.at, record.chain, record.previous = sequence, at, self._chain, last
            line, last = seal_record(record)
            lines.append(line)
        try:
            self._write(b"\n".join([*lines, b""]), at[:10])
        except OSError as problem:
            self._lost += len(records)
            for record in records:
                _log.error("record of request %s is not in the audit log: %s", record.request, problem)
            raise _unwritable(self.folder, problem, "the request may have been carried out") from None
        self._sequence, self._hash = sequence, last
        if self._on_line is not None:
            for line, record in zip(lines, records, strict=True):
                self._on_line(line, record)

    def takes(self, address: str) -> bool:
        """Whether to record a refused or failed request from ``address``; if not, it is counted for the minute's record."""
        return self._bound.takes(address)

    async def keep(self) -> None:
        """Each minute record what was left out, and forget what is old; until cancelled."""
        while True:
            await self._clock.sleep(60.0)
            try:
                self._note_left_out()
                self.forget_old()
            except (Unavailable, OSError) as problem:
                _log.error("audit log maintenance failed: %s", problem)

    def _note_left_out(self) -> None:
        for address, count in self._bound.end_minute():
            requests = f"{count} more refused or failed requests from {address or 'others'}"
            self.note("notRecorded", f"{requests} were counted, not recorded", address=address, count=count)

    def note(self, verb: Note, message: str, *, address: str = "", count: int = 1) -> None:
        """Write a record of the server's own."""
        self.append(
            AuditRecord(
                actor=_SERVER, address=address, verb=verb, outcome=_OUTCOMES[verb], message=message, count=count
            )
        )

    def forget_old(self) -> None:
        """Remove the oldest files, whole, that are beyond what is kept; a record says up to which one. Never the newest file."""
        if self._readers:
            return
        files = list_files(self.folder)
        sizes = {path: path.stat() for path in files}
        total, oldest = sum(stat.st_size for stat in sizes.values()), self._clock.now() - self._keep_seconds
        gone = 0
        for path in files[:-1]:
            if sizes[path].st_mtime >= oldest and total <= self._keep_bytes:
                break
            total -= sizes[path].st_size
            for torn in self.folder.glob(f"{path.stem}.torn-*"):
                torn.unlink()
            path.unlink()
            gone += 1
        if gone:
            first = int(files[gone].stem)
            self.note("forget", f"records before {first} are older or more than what is kept, and were removed")

    @property
    def is_verified(self) -> bool:
        """Whether the chain is being followed just now."""
        return self._readers > 0

    def verify(self) -> AuditVerdict:
        """Follow the whole chain, up to the newest record. For another thread, so the newest records come meanwhile."""
        self._readers += 1
        try:
            return verify_files(self.folder, self.head)
        finally:
            self._readers -= 1

    def close(self) -> None:
        """Write the last record; all is on the disk then. Call it once no request is left."""
        if self._thread.is_alive():
            with contextlib.suppress(Unavailable):
                self._note_left_out()
                self.note("stop", "the server ends")
            self._closed.set()
            self._unsynced.set()
            self._thread.join()
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1

    def _write(self, data: bytes, day: str) -> None:
        if self._file < 0 or day != self._day or self._size + len(data) > self._file_bytes:
            self._begin_file(day)
        try:
            self._write_whole(data)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._has_reserve:
                raise
            self._has_reserve = False
            (self.folder / _RESERVE).unlink(missing_ok=True)
            self._write_whole(data)
        self._size += len(data)
        if not self._unsynced.is_set():
            self._unsynced.set()

    def _write_whole(self, data: bytes) -> None:
        """All of ``data``, or nothing of it."""
        try:
            written = _write_at_once(self._file, data)
            while written < len(data):
                written += _write_at_once(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise

    def _begin_file(self, day: str) -> None:
        """The file for the next record: the newest one, if it is of this day and has space; else another."""
        path = self.folder / name_file(self._sequence + 1)
        size = 0
        if self._file < 0 and (files := list_files(self.folder)):
            stat = files[-1].stat()
            if stat.st_size < self._file_bytes and time.strftime("%Y-%m-%d", time.gmtime(stat.st_mtime)) == day:
                path, size = files[-1], stat.st_size
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with self._guard:
            if self._file >= 0:
                self._old.append(self._file)
            self._file = file
        self._size, self._day = size, day
        sync_folder(self.folder)

    def _reserve(self) -> None:
        path = self.folder / _RESERVE
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, RESERVE_BYTES)
            self._has_reserve = True
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise InUse(f"another server writes {self.folder}", hint="stop that server first") from None

    def _show(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((now - second) * 1e6):06d}Z"

    def _keep_syncing(self) -> None:
        while not self._closed.is_set():
            self._unsynced.wait()
            self._closed.wait(SYNC_SECONDS)
            self._unsynced.clear()
            self._sync()
        self._sync()

    def _sync(self) -> None:
        """Bring all that was written to the disk."""
        with self._guard:
            (old, self._old), file = (self._old, []), self._file
        try:
            for each in old:
                os.fsync(each)
            if file >= 0:
                os.fdatasync(file)
        except OSError as problem:
            _log.error("the audit log can't be brought to the disk: %s", problem)
        for each in old:
            os.close(each)


def _write_at_once(file: int, data: bytes) -> int:
    """``os.write``, but the interpreter's lock is kept: the page cache takes a record in a microsecond, and another thread that
    takes the lock meanwhile gives it back after milliseconds."""
    written: int = _libc.write(file, data, len(data))
    if written < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return written


def _unwritable(folder: Path, problem: OSError, done: str = "nothing was changed") -> Unavailable:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"the disk of the audit log {folder} is full: {done}", hint="free disk space")
    text = (problem.strerror or str(problem)).lower()
    return Unavailable(f"the audit log {folder} can't be written ({text}): {done}", hint="free or repair its disk")
