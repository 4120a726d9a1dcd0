"""Files that outlive a power cut: whole under their name, or not there at all. Everything that keeps state writes this way."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

RESERVE_BYTES = 1 << 30  # of a server's disk that no file takes: its store lies there too


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``data`` in one step that a power cut can't halve. Raises OSError, and leaves nothing then."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_private(database: Path) -> None:
    """Make the file of an SQLite database for its owner alone, before anything is in it; one that is there, and the files beside
    it, which have its mode, lose the rights of others. Raises OSError."""
    try:
        # Only a new file is opened: closing one that is in use would drop the locks of this process's other connections to it.
        os.close(os.open(database, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        database.chmod(0o600)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + suffix).chmod(0o600)


def keep_file(work: Path, path: Path) -> None:
    """Give the finished file ``work`` its name, durably; what bore the name before is replaced."""
    descriptor = os.open(work, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    work.replace(path)
    sync_folder(path.parent)


def name_file(work: Path, path: Path) -> None:
    """Keep the file like ``keep_file``, unless there is a file of that name: then that one stays, and ``work`` goes."""
    descriptor = os.open(work, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(work, path)
    work.unlink()
    sync_folder(path.parent)


def measure_free(place: Path | int) -> int:
    """Bytes that may still be written where ``place`` lies: all but a reserve of RESERVE_BYTES, or a twentieth of a small disk."""
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize - min(RESERVE_BYTES, facts.f_blocks * facts.f_frsize // 20)


def name_replaced(path: Path) -> Path:
    """A free name beside ``path``, for what is about to be replaced: what an earlier one kept stays."""
    kept, number = path.with_name(f"{path.name}.replaced"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.replaced-{number}")
    return kept


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
