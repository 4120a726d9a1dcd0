"""Folders in memory for tests whose files no disk needs to have: a disk takes milliseconds for each file that is synced, and
agents, stores and backups sync many."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED_BYTES = 2 << 30


def find_shelf() -> str:
    """The folder for them: a container may have but 64 MiB of shared memory."""
    memory = "/dev/shm"
    return memory if os.path.isdir(memory) and shutil.disk_usage(memory).free > NEEDED_BYTES else "/tmp"


SHELF = find_shelf()


def sweep_shelf(shelf: str) -> None:
    """Remove the folders of processes that were killed: their names have the processes' numbers."""
    for folder in Path(shelf).glob("weft-*-*"):
        number = folder.name.split("-")[1]
        if number.isdigit() and not os.path.exists(f"/proc/{number}"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tmp_path_factory(request: pytest.FixtureRequest) -> Iterator[pytest.TempPathFactory]:
    """pytest's own, in memory: the folder of a test goes once it has passed, and all others with this process."""
    sweep_shelf(SHELF)
    with tempfile.TemporaryDirectory(prefix=f"weft-{os.getpid()}-", dir=SHELF) as folder:
        trace = request.config.trace.get("tmpdir")
        yield pytest.TempPathFactory(Path(folder) / "t", 1, "failed", trace, _ispytest=True)
