"""One build of a thing at a time: a second builder waits, and finds it built. Also the folders where builds work, and the
removal of those that killed builds left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def take_turn(target: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Take the turn: until the block ends no other process builds ``target``, whose folder is made. Blocks while another does, and
    reports that. A locked file beside the target marks the turn and is gone afterwards; the lock ends with the process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sign = target.with_name(f".building-{target.name}")
    held = os.open(sign, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build of it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        sign.unlink(missing_ok=True)  # a process that waits on it looks first whether the target is there
        os.close(held)


@contextlib.contextmanager
def work_beside(target: Path, name: str) -> Iterator[Path]:
    """A folder beside ``target`` to build it in, which goes with the block. Folders of builds under this ``name`` that were killed
    go first: a build holds a lock on its folder, which ends with its process."""
    prefix = f".making-{name}-"
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as alone:  # no folder is without its lock while others look
            _hold(alone, target.parent, wait=True)
            for folder in target.parent.glob(f"{prefix}*"):
                with contextlib.ExitStack() as left, contextlib.suppress(FileNotFoundError):  # its build has just ended
                    if _hold(left, folder, wait=False):
                        shutil.rmtree(folder)
            work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            _hold(stack, work, wait=True)
            stack.callback(shutil.rmtree, work)  # before its lock ends, or another build would be at it too
        yield work


def _hold(stack: contextlib.ExitStack, folder: Path, *, wait: bool) -> bool:
    """Lock a folder until ``stack`` ends; False where another process has it and this one isn't to ``wait``."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, held)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
