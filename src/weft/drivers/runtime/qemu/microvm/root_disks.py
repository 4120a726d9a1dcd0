"""Images as disks: each made once on a node, from its layers, and shared by all containers that have it; and what one of them
writes, as a file over that.

Reads layers; writes ``<state>/microvm/images``. A file has its name when it is whole and on disk. Owners, modes, links and
extended attributes are those of the layers: the machine's users are the image's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from weft.contracts.durable_file import sync_folder
from weft.objects.errors import DriverFailed

NEEDED = {"mkfs.ext4": "e2fsprogs", "qemu-img": "qemu-utils", "unshare": "util-linux", "du": "coreutils"}
WRITTEN_BYTES = 8 << 30  # what a container may write beside what its image has, of one from before that was asked for
UNUSED_BYTES = 4 << 30  # of images that nothing here has, until the oldest go
AT_ONCE = 2
_FORMAT = "2"  # of how they are made: another makes them anew
_MAKING = ".making-"

# In mounts of its own, so nothing stays mounted. An empty layer below makes a single one do; short names, since overlayfs has one
# page for all of them. All the room that there will be, which takes none until it is written: a
# machine that is killed while its kernel grows an ext4 that is in use leaves one on which the next one's kernel fails.
_SCRIPT = """
set -e
cd "$1"
mkdir -p empty merged
mount -t overlay -o "ro,lowerdir=$2:empty" overlay merged
bytes=$(du -s --apparent-size --block-size=4096 merged | cut -f 1)
files=$(du -s --inodes merged | cut -f 1)
blocks=$((bytes + bytes / 32 + files + files / 8 + 8192 + $3 / 4096))
exec mkfs.ext4 -q -F -b 4096 -m 0 -J size=4 -N $((files + files / 8 + 2048 + $3 / 65536)) \
    -E lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0 -d merged image "$blocks"
"""


class Roots:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._making: dict[str, asyncio.Lock] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ensure(self, layers: Sequence[str], written_bytes: int = 0) -> str:
        """The file with the image of these ``layers``, the uppermost first, with room for ``written_bytes`` more. Raises
        DriverFailed."""
        path = self._folder / f"{name_layers(layers, written_bytes)}.ext4"
        async with self._making.setdefault(path.name, asyncio.Lock()):
            if path.exists():
                os.utime(path)
            else:
                async with self._places:
                    await self._make(layers, path, written_bytes or WRITTEN_BYTES)
        return str(path)

    async def _make(self, layers: Sequence[str], path: Path, written_bytes: int) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=_MAKING, dir=self._folder))
        try:
            for number, layer in enumerate(layers):
                (work / str(number)).symlink_to(layer)
            names = ":".join(str(number) for number in range(len(layers)))
            words = ["sh", "-c", _SCRIPT, "sh", str(work), names, str(written_bytes)]
            await run("unshare", "--mount", "--propagation", "private", *words)
            await asyncio.to_thread(_keep, work / "image", path)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    def sweep(self) -> None:
        """What was being made when an agent was killed goes."""
        for path in self._folder.glob(f"{_MAKING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def forget(self, used: Collection[str]) -> None:
        """Of those that nothing in ``used`` names, the oldest go as far as there are too many."""
        unused = []
        for path in self._folder.glob("*.ext4"):
            if str(path) not in used:
                facts = path.stat()
                unused.append((facts.st_mtime, facts.st_blocks * 512, path))
        left = sum(size for _, size, _ in unused)
        for _, size, path in sorted(unused):
            if left <= UNUSED_BYTES:
                return
            path.unlink(missing_ok=True)
            left -= size


def name_layers(layers: Sequence[str], written_bytes: int = 0) -> str:
    """Layers are named by what is in them: equal names are equal images. Each room for what is written is another file."""
    room = [str(written_bytes)] if written_bytes else []
    return hashlib.sha256("\0".join((_FORMAT, *layers, *room)).encode()).hexdigest()[:24]


def root_size(base: str) -> int:
    return os.stat(base).st_size


async def ensure_written(path: Path, base: str) -> None:
    """The file that takes what is written over ``base``. Raises DriverFailed."""
    if not path.exists():  # noqa: ASYNC240 (one look)
        pending = path.with_suffix(".pending")
        pending.unlink(missing_ok=True)
        await run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", str(pending), str(root_size(base))
        )
        pending.replace(path)


def _keep(image: Path, path: Path) -> None:
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    image.replace(path)
    sync_folder(path.parent)


async def run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()
        raise DriverFailed(
            f"its image can't be converted to a disk: {words[-1][:300] if words else argv[0]}", details={"step": "disk"}
        )
