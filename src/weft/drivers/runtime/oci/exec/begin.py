"""The wait for a container's program, which a command beside it can't begin before."""

from __future__ import annotations

import os
from pathlib import Path

from weft.contracts.clock import Clock

BEGIN_SECONDS, BEGIN_PAUSE_SECONDS = 5.0, 0.005


async def wait_for_program(pid: int, runtime: str, clock: Clock) -> None:
    """Wait until ``pid``, a container's first process, runs the container's program in place of the runtime; BEGIN_SECONDS at most.
    Before that, crun 1.8 can't join its namespaces: setns fails with EPERM (crun's issue 1264)."""
    deadline = clock.elapsed() + BEGIN_SECONDS
    while _is_runtime(pid, runtime) and clock.elapsed() < deadline:
        await clock.sleep(BEGIN_PAUSE_SECONDS)


def _is_runtime(pid: int, runtime: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/exe").startswith(f"/memfd:{Path(runtime).name}_cloned:"):
            return True  # it runs from a copy of itself, which the container can't write to
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat(runtime))
    except OSError:
        return False
