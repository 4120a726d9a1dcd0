"""One `make up` or `make down` at a time for a clone: a lock that ends with its holder, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.objects.errors import InUse

FILE = "up.lock"


@contextmanager
def hold_lock(state_dir: Path, doing: str) -> Iterator[None]:
    """Hold the clone's lock; raises InUse naming what holds it ("make up (pid 12)") when it is held."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    path = state_dir / FILE
    with _open_current(path) as descriptor:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{doing} (pid {os.getpid()})".encode(), 0)
        yield


@contextmanager
def _open_current(path: Path) -> Iterator[int]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `make down` removes the file: a lock on a removed file protects nothing.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield descriptor
                return
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode() or "make up"
            raise InUse(f"another {holder} is running in this clone", hint="wait until it ends, or stop it") from error
        finally:
            os.close(descriptor)
