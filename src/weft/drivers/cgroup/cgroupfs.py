"""Control groups as folders: who is in them and in those below, ended and cleared away; what the kernel counted there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weft.contracts.clock import Clock

REMOVAL_TRIES, REMOVAL_PAUSE_SECONDS = 150, 0.02


def walk(folders: Iterable[Path]) -> Iterator[Path]:
    """The groups below these and themselves, the deepest first."""
    for folder in folders:
        for path, _, _ in os.walk(folder, topdown=False):
            yield Path(path)


def list_processes(folders: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for group in walk(folders):
        with contextlib.suppress(OSError, ValueError):
            found.update(map(int, (group / "cgroup.procs").read_text().split()))
    return found - {0}


def end_processes(folders: Iterable[Path]) -> None:
    """SIGKILL to all that are in them now."""
    for pid in list_processes(folders):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def remove(folders: Iterable[Path]) -> bool:
    """Remove what is empty. False: something isn't."""
    folders = list(folders)
    for group in walk(folders):
        with contextlib.suppress(OSError):
            group.rmdir()
    return not any(folder.exists() for folder in folders)


async def clear(kill: Callable[[], None], take_away: Callable[[], bool], clock: Clock) -> bool:
    """Both, as often as it takes: who was killed may be there for a moment. False: something is still there."""
    for _ in range(REMOVAL_TRIES):
        kill()
        if take_away():
            return True
        await clock.sleep(REMOVAL_PAUSE_SECONDS)
    return False


def count_oom_kills(events: str) -> int:
    """Pure. Out of memory.events (version 2) or memory.oom_control."""
    counts = dict(line.split(" ", 1) for line in events.splitlines() if " " in line)
    return int(counts.get("oom_kill", "0"))
