"""What was said to be durable is there after a power cut: whatever was not synced by then is dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.power.cut import Disk

from weft.store.sqlite import SqliteStore

COMMITS = """
import asyncio, sys
from pathlib import Path
from weft.contracts.store import Delete, Put
from weft.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path("store.db"))
    await store.open()
    for number in range(5):
        await store.commit([Put(f"/kept/{number}", b"x" * 9000), Put("/newest", b"%d" % number)])
    await store.commit([Delete("/kept/0")])
    print("acknowledged", flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
FILES = """
from pathlib import Path
from weft.contracts.durable_file import keep_file, name_file, write_durably

Path("work").write_bytes(b"whole")
{act}
"""
CARELESS = """
with open("unsynced", "wb") as out:
    out.write(b"lost")
with open("nameless", "wb") as out:
    out.write(b"lost")
    out.flush()
    os.fdatasync(out.fileno())
os.rename("unsynced", "renamed")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
os.rename("renamed", "renamed again")
"""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def test_a_commit_that_was_acknowledged_outlives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    assert disk.run(COMMITS) == b"acknowledged\n"
    store = SqliteStore(disk.cut(tmp_path / "after") / "store.db")
    await store.open()
    try:
        found = {entry.key: entry.value for entry in (await store.list("/")).entries}
    finally:
        await store.close()
    assert found == {**{f"/kept/{number}": b"x" * 9000 for number in range(1, 5)}, "/newest": b"4"}


@pytest.mark.parametrize(
    "act",
    [
        'write_durably(Path("name"), b"whole")',
        'Path("name").write_bytes(b"before"); write_durably(Path("name"), b"whole")',
        'keep_file(Path("work"), Path("name"))',
        'name_file(Path("work"), Path("name"))',
    ],
)
def test_a_file_that_is_written_durably_is_whole_after_a_power_cut(act: str, disk: Disk, tmp_path: Path) -> None:
    disk.run(FILES.format(act=act))
    assert (disk.cut(tmp_path / "after") / "name").read_bytes() == b"whole"


def test_what_was_not_synced_is_dropped(disk: Disk, tmp_path: Path) -> None:
    """Else the others could not fail."""
    disk.run(CARELESS)
    found = {path.name: path.read_bytes() for path in disk.cut(tmp_path / "after").iterdir()}
    assert found == {"renamed": b"", "nameless": b"lost"}
