"""Layers of an image as one ext4 disk, for a machine with weft's init: of a container, of a function, of a VM from an image.

A disk has its name when it is whole and on disk, and is made once for all machines that have the same layers. Owners, modes, links
and extended attributes are those of the layers: the machine's users are the image's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from weft.contracts.durable_file import keep_file
from weft.drivers.linux.programs import run_on_disk, run_program
from weft.objects.errors import DriverFailed

WRITTEN_BYTES = 8 << 30  # what a machine may write beside its image, where nothing bounds it
PACKAGES = {"mkfs.ext4": "e2fsprogs", "unshare": "util-linux", "du": "coreutils", "qemu-img": "qemu-utils"}
MAKING_SECONDS = 3600.0
_NO_SPACE = 28
_MAKING = ".making-"
_FORMAT = "3"  # of how they are made: another makes them anew

# In mounts of its own, so nothing stays mounted. An empty layer below makes a single one do; short names, since overlayfs has one
# page for all of them.
_SCRIPT = """
set -e
cd "$1"; names=$2 written=$3 slack=$4 inodes=$5; shift 5
mkdir -p empty merged
mount -t overlay -o "ro,lowerdir=$names:empty" overlay merged
bytes=$(du -s --apparent-size --block-size=4096 merged | cut -f 1)
files=$(du -s --inodes merged | cut -f 1)
blocks=$((bytes + bytes / 16 + files + files / 8 + slack))
free=$(($(stat -f -c '%a * %S' .) / 4096))
[ $free -ge $blocks ] || { echo "$((blocks / 256)) MiB don't fit: $((free / 256)) MiB are free" >&2; exit 28; }
exec mkfs.ext4 -q -F -b 4096 -m 0 -N $((files + files / 8 + inodes)) "$@" -d merged image $((blocks + written))
"""


class DiskShape(msgspec.Struct, frozen=True):
    written_bytes: int = 0  # for what a machine writes beside the layers; takes no space before
    slack_bytes: int = 4 << 20  # for the file system's own tables and its journal
    spare_inodes: int = 64
    options: tuple[str, ...] = ()  # more of mkfs.ext4's
    mount_points: tuple[str, ...] = ()  # folders that are there even where the layers have none
    mount_files: tuple[
        str, ...
    ] = ()  # empty files, instead of what the layers have: a link there would lead out of the disk


def shape_root(written_bytes: int) -> DiskShape:
    """A root that a machine writes into, or into a file over it: with all the space that there will be, for a machine that is
    killed while its kernel grows an ext4 that is in use leaves one on which the next one's kernel fails."""
    return DiskShape(
        written_bytes=written_bytes,
        slack_bytes=32 << 20,
        spare_inodes=2048 + (written_bytes >> 16),
        options=("-J", "size=4", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"),
    )


class ImageDisks:
    """The disks in ``folder``, by key."""

    def __init__(self, folder: Path, at_once: int = 2) -> None:
        self.folder = folder
        self._locks: dict[str, asyncio.Lock] = {}
        self._places = asyncio.Semaphore(at_once)

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.ext4"

    def lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    async def ensure_root(self, layers: Sequence[str], written_bytes: int = 0) -> str:
        """The disk of these ``layers`` with space for ``written_bytes`` more. Raises DriverFailed."""
        shape = shape_root(written_bytes or WRITTEN_BYTES)
        return str(await self.ensure(name_root(layers, written_bytes), layers, shape))

    async def ensure(self, key: str, layers: Sequence[str], shape: DiskShape) -> Path:
        """The disk of these ``layers``, the uppermost first. Raises DriverFailed."""
        path = self.path(key)
        async with self.lock(key):
            if path.exists():
                os.utime(path)
            else:
                await self.make(path, layers, shape)
        return path

    async def make(self, path: Path, layers: Sequence[str], shape: DiskShape) -> None:
        """Raises DriverFailed; then nothing is left of it."""
        late = importlib.import_module("tempfile")  # for this alone
        async with self._places:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            work = Path(late.mkdtemp(prefix=_MAKING, dir=self.folder))
            try:
                names = await asyncio.to_thread(_lay_out, work, layers, shape)
                words = [str(work), names, *(str(bytes >> 12) for bytes in (shape.written_bytes, shape.slack_bytes))]
                words += [str(shape.spare_inodes), *shape.options]
                done = await run_program(
                    ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", *words],
                    "making a disk of an image", " ".join(PACKAGES.values()), seconds=MAKING_SECONDS,
                )  # fmt: skip
                if done.code != 0:
                    problem = (done.errors.strip().splitlines() or [f"exit code {done.code}"])[-1][:300]
                    full = done.code == _NO_SPACE or "No space left" in problem
                    raise DriverFailed(
                        f"its image can't be converted to a disk: {problem}",
                        reason="noSpace" if full else None,
                        details={"step": "disk"},
                    )
                await asyncio.to_thread(keep_file, work / "image", path)
            except OSError as problem:
                raise DriverFailed(
                    f"its image can't be converted to a disk: {problem.strerror or problem}", details={"step": "disk"}
                ) from problem
            finally:
                await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what was being made when an agent was killed."""
        for path in self.folder.glob(f"{_MAKING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def forget(self, used: Collection[str], most_unused_bytes: int) -> None:
        """Remove the oldest of those whose key isn't in ``used``, as far as there are too many."""
        unused = []
        for path in self.folder.glob("*.ext4"):
            if path.stem not in used and not self.lock(path.stem).locked():
                facts = path.stat()
                unused.append((facts.st_mtime, facts.st_blocks * 512, path))
        left = sum(size for _, size, _ in unused)
        for _, size, path in sorted(unused):
            if left <= most_unused_bytes:
                return
            path.unlink(missing_ok=True)
            left -= size


def _lay_out(work: Path, layers: Sequence[str], shape: DiskShape) -> str:
    """The layers' short names, as overlayfs has them: what the shape adds lies above and below."""
    for number, layer in enumerate(layers):
        (work / str(number)).symlink_to(layer)
    names = [str(number) for number in range(len(layers))]
    for place, paths in (("above", shape.mount_files), ("empty", shape.mount_points)):
        for path in paths:
            at = work / place / path
            (at.parent if place == "above" else at).mkdir(parents=True, exist_ok=True)
            if place == "above":
                at.touch()
    for folder, _, _ in os.walk(work / "above"):  # the modes of these folders count
        os.chmod(folder, 0o755)  # noqa: S103 (the work folder lets nobody else in)
    return ":".join(["above", *names] if shape.mount_files else names)


def name_root(layers: Sequence[str], written_bytes: int = 0) -> str:
    """The key of a root. Layers are named by what is in them: equal names are equal images. Each size of what may be written is
    another disk."""
    size = [str(written_bytes)] if written_bytes else []
    return hashlib.sha256("\0".join((_FORMAT, *layers, *size)).encode()).hexdigest()[:24]


async def ensure_overlay(path: Path, base: str) -> None:
    """The file that takes what is written over ``base``. Raises DriverFailed."""
    if not path.exists():  # noqa: ASYNC240 (one look)
        pending = path.with_suffix(".pending")
        pending.unlink(missing_ok=True)
        words = ["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", str(pending), str(os.stat(base).st_size)]
        await run_on_disk(["qemu-img", *words], "qemu-utils", seconds=MAKING_SECONDS)
        pending.replace(path)
