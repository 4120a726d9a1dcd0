"""Files that outlive a power cut, and those of databases."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from weft.contracts.durable_file import make_private
from weft.store.sqlite.file import connect


@pytest.mark.parametrize("prepare", [make_private, connect])
def test_a_database_that_another_connection_has_open_keeps_its_locks(
    tmp_path: Path, prepare: Callable[[Path], object]
) -> None:
    path = tmp_path / "some.db"
    open_ = [prepare(path)]
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("r+b") as held:  # as SQLite holds its locks: closing any descriptor of the file would drop them
        fcntl.lockf(held, fcntl.LOCK_EX)
        open_.append(prepare(path))
        locks = Path("/proc/locks").read_text().split()
        assert any(word.endswith(f":{path.stat().st_ino}") for word in locks)
