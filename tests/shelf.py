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


@pytest.fixture(scope="session")
def tmp_path_factory(request: pytest.FixtureRequest) -> Iterator[pytest.TempPathFactory]:
    """pytest's own, in memory: the folder of a test goes once it has passed, and all others with this process."""
    with tempfile.TemporaryDirectory(prefix="weft-tests-", dir=SHELF) as folder:
        trace = request.config.trace.get("tmpdir")
        yield pytest.TempPathFactory(Path(folder) / "t", 1, "failed", trace, _ispytest=True)
