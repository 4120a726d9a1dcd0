"""Read-only disks made of folders: a root or a function's code as ext4, made once for each content and shared by all machines.

Runs ``mkfs.ext4`` and ``debugfs``; several layers are put together by an overlay that only a thread of its own sees. Each disk
has a note beside it with its size and digest, so that one that was damaged is made again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from weft.contracts.durable_file import keep_file, write_durably
from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread
from weft.drivers.linux.syscalls import mount
from weft.drivers.runtime.qemu.function.checksums import Checks, inspect_file
from weft.objects.errors import DriverFailed

MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "etc", "var", "var/task")
_SLACK_BYTES, _PER_FILE_BYTES = 4 << 20, 4608
_FLAGS = ["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^metadata_csum,^64bit,^resize_inode"]
_EXTENDED = "lazy_itable_init=1,nodiscard,assume_storage_prezeroed=1"


class Disks:
    """Those in ``folder``, by key."""

    def __init__(self, folder: Path, checks: Checks) -> None:
        self._folder = folder
        self._checks = checks
        self._making: dict[str, asyncio.Lock] = {}

    def path(self, key: str) -> Path:
        return self._folder / f"{key}.ext4"

    async def ensure(self, key: str, layers: Sequence[str], *, root: bool) -> Path:
        """The disk of what lies in ``layers``, uppermost first; ``root``: it gets the folders, and the one
        file, that are mounted over. Raises DriverFailed."""
        async with self._making.setdefault(key, asyncio.Lock()):
            path = self.path(key)
            if await self._checks.holds(path):
                return path
            self._folder.mkdir(parents=True, exist_ok=True)
            work = self._folder / f".{key}.{os.getpid()}"
            try:
                await run_in_own_thread(lambda: _make(work, layers, root))
                note = await asyncio.to_thread(inspect_file, work)
                await asyncio.to_thread(write_durably, self._checks.note(path), note)
                await asyncio.to_thread(keep_file, work, path)
                self._checks.trust(path)
            except OSError as problem:
                raise DriverFailed(
                    f"a function's disk can't be made: {problem.strerror or problem}", details={"step": "disk"}
                ) from problem
            finally:
                await asyncio.to_thread(work.unlink, missing_ok=True)
            return path

    async def keep_only(self, keys: set[str]) -> None:
        """Those of other keys go."""
        for path in self._folder.glob("*.ext4"):
            if path.stem not in keys and not (lock := self._making.get(path.stem, asyncio.Lock())).locked():
                async with lock:
                    await asyncio.to_thread(path.unlink, missing_ok=True)
                    self._checks.note(path).unlink(missing_ok=True)


def _make(work: Path, layers: Sequence[str], root: bool) -> None:
    source = layers[0]
    if len(layers) > 1:
        leave_mounts([])
        point = work.with_suffix(".layers")
        point.mkdir(exist_ok=True)
        try:
            mount("overlay", point, "overlay", 1, "lowerdir=" + ":".join(layers))
            _write(work, str(point), root)
        finally:
            subprocess.run(["umount", str(point)], capture_output=True, check=False)
            shutil.rmtree(point, ignore_errors=True)
    else:
        _write(work, source, root)


def _write(work: Path, source: str, root: bool) -> None:
    size, files = _measure(source)
    size = -(-(size + files * _PER_FILE_BYTES + size // 16 + _SLACK_BYTES) // (1 << 20)) << 20
    free = shutil.disk_usage(work.parent).free
    if free < size:
        raise DriverFailed(
            f"a function's disk of {size >> 20} MiB doesn't fit: {free >> 20} MiB free in {work.parent}",
            reason="noSpace",
            details={"step": "disk"},
        )
    with open(work, "wb") as file:
        file.truncate(size)
        os.fchmod(file.fileno(), 0o600)
    inodes = ["-N", str(files + files // 8 + 64)]
    _run(["mkfs.ext4", *_FLAGS, "-E", _EXTENDED, *inodes, "-d", source, str(work)])
    if root:  # what is there already is left as it is, and debugfs says so
        commands = "".join(f"mkdir /{point}\n" for point in MOUNT_POINTS if not os.path.isdir(f"{source}/{point}"))
        with tempfile.NamedTemporaryFile() as empty:  # a link there would lead out of the disk
            commands += f"rm /etc/resolv.conf\ncd /etc\nwrite {empty.name} resolv.conf\n"
            _run(["debugfs", "-w", "-f", "-", str(work)], commands)


def _measure(source: str) -> tuple[int, int]:
    size = files = 0
    for folder, folders, names in os.walk(source):
        files += len(folders) + len(names)
        size += 4096 * (1 + len(folders) // 32)
        for name in names:
            size += -(-os.lstat(os.path.join(folder, name)).st_size // 4096) * 4096
    return size, files


def _run(words: list[str], text: str = "") -> None:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DriverFailed(
            f"a function's disk can't be made: {words[0]}: {done.stderr.strip()[-300:]}", details={"step": "disk"}
        )
