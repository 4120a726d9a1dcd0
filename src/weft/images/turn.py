"""One build of a thing at a time: whoever comes while another builds it waits, and finds it built."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def take_turn(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Until the block ends no other process builds ``target``, whose folder is made. Blocks while another does, which is told. Its
    sign is a file beside the target that is gone afterwards; the lock on it ends with the process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sign = target.with_name(f".building-{target.name}")
    held = os.open(sign, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build of it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        sign.unlink(missing_ok=True)  # whoever waits on it looks first whether the target is there
        os.close(held)
