"""Read-only disks of functions: a root, or the code, shared by all machines that have it.

Each has a note beside it with its size and digest, so that one that was damaged is made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

from weft.contracts.durable_file import write_durably
from weft.drivers.runtime.qemu.function.checksums import Checks, inspect_file
from weft.drivers.runtime.qemu.image_disk import DiskShape, ImageDisks

_OPTIONS = (
    *("-O", "^has_journal,^metadata_csum,^64bit,^resize_inode"),
    *("-E", "lazy_itable_init=1,nodiscard,assume_storage_prezeroed=1"),
)
CODE = DiskShape(options=_OPTIONS)
ROOT = DiskShape(
    options=_OPTIONS,
    mount_points=("proc", "sys", "dev", "run", "tmp", "var/task"),
    mount_files=("etc/resolv.conf",),
)


class CheckedDisks(ImageDisks):
    def __init__(self, folder: Path, checks: Checks) -> None:
        super().__init__(folder)
        self._checks = checks

    async def ensure(self, key: str, layers: Sequence[str], shape: DiskShape) -> Path:
        async with self.lock(key):
            path = self.path(key)
            if not await self._checks.holds(path):
                await self.make(path, layers, shape)
                note = await asyncio.to_thread(inspect_file, path)
                await asyncio.to_thread(write_durably, self._checks.note(path), note)
                self._checks.trust(path)
            return path

    def forget(self, used: Collection[str], most_unused_bytes: int = 0) -> None:
        super().forget(used, most_unused_bytes)
        for path in map(self.path, {note.name.removesuffix(".ext4.json") for note in self.folder.glob("*.ext4.json")}):
            if not path.exists() and not self.lock(path.stem).locked():
                self._checks.note(path).unlink(missing_ok=True)
