"""Whether an API server serves its store to the other processes of its server, at ``STATE/store.sock``."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from weft.contracts.clock import Clock

START_SECONDS = 10.0
_LOOK_SECONDS = 0.05


def is_listening(path: Path) -> bool:
    """Whether a server runs, not only a killed one's socket exists."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False


async def wait_for_store(path: Path, stop: asyncio.Event, clock: Clock) -> None:
    """Wait, for as long as a start takes, until the API server that is started beside this process is there, or ``stop`` is set."""
    deadline = clock.elapsed() + START_SECONDS
    while not stop.is_set() and clock.elapsed() < deadline and not is_listening(path):
        await clock.sleep(_LOOK_SECONDS)
