"""File systems of raw disks that are mounted on this node by a loop device, in whatever mount namespace, held frozen while they are
copied. The time is bounded by a process of its own (``freeze_holder``), whatever becomes of this one.

Source: loop(4), LOOP_GET_STATUS64 and struct loop_info64 of the kernel's linux/loop.h; proc_pid_mountinfo(5).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from weft.drivers.linux import freeze_holder
from weft.drivers.linux.mounts import parse_mounts
from weft.objects.errors import DriverFailed, IllegalTransition

FREEZE_SECONDS = 10.0
_START_SECONDS = 60.0  # until what waits to be written is written
_LOOP_GET_STATUS64 = 0x4C05
_STATUS = struct.Struct("=QQ216x")  # lo_device, lo_inode, and what isn't read


class Frozen(msgspec.Struct):
    pause_ms: float = 0.0  # once they are thawed


def find_mounted(path: Path) -> int | None:
    """An open folder of the file system of the raw disk ``path``; None if no loop device has the disk. Blocks. Raises
    IllegalTransition for one that is being mounted or unmounted."""
    there = path.stat()
    numbers = {number for number in map(_number_of, Path("/sys/block").glob("loop*")) if number}
    loops = {number for number in numbers if _read_file(number) == (there.st_dev, there.st_ino)}
    if not loops:
        return None
    seen = set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")
            if namespace in seen:
                continue
            text = (process / "mountinfo").read_text(errors="surrogateescape")
            seen.add(namespace)
            for mount in parse_mounts(text):
                if mount.device in loops and (folder := _open(process / "root", mount.point, mount.device)) is not None:
                    return folder
    raise IllegalTransition(f"{path.name} is being mounted or unmounted", hint="try again in a moment")


def _number_of(block: Path) -> str:
    """The device's number, as major:minor; "" for one that has no file."""
    with contextlib.suppress(OSError):
        return (block / "dev").read_text().strip() if (block / "loop/backing_file").exists() else ""
    return ""


def _read_file(number: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        device = os.open(f"/dev/loop{number.partition(':')[2]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_STATUS.size))
        finally:
            os.close(device)
        found, inode = _STATUS.unpack(answer)
        return int(found), int(inode)
    return None


def _open(root: Path, point: str, number: str) -> int | None:
    """The mount point, as long as it leads to that device: what a container calls its folders proves nothing."""
    with contextlib.suppress(OSError):
        folder = os.open(f"{root}{point}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        device = os.fstat(folder).st_dev
        if f"{os.major(device)}:{os.minor(device)}" == number:
            return folder
        os.close(folder)
    return None


def thaw(path: Path) -> None:
    """Thaw the file system of a raw disk, if it is mounted and frozen. Blocks."""
    with contextlib.suppress(OSError, IllegalTransition):
        folder = find_mounted(path)
        if folder is not None:
            try:
                fcntl.ioctl(folder, freeze_holder.THAW, 0)
            finally:
                os.close(folder)


@contextlib.asynccontextmanager
async def hold_frozen(folders: Sequence[int], seconds: float = FREEZE_SECONDS) -> AsyncIterator[Frozen]:
    """Their file systems don't change inside. Raises DriverFailed if they can't be frozen, and at the end if they were not frozen
    all the while (``tooSlow``): then nothing that was read is of one instant."""
    words = [sys.executable, "-ISB", freeze_holder.__file__, f"{seconds:g}", *map(str, folders)]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=tuple(folders)
    )
    assert process.stdin is not None and process.stdout is not None
    frozen = Frozen()
    try:
        async with asyncio.timeout(_START_SECONDS):
            await process.stdout.readline()
            began = asyncio.get_running_loop().time()
            line = (await process.stdout.readline()).decode().strip()
        if line != "frozen":
            raise DriverFailed(f"a file system can't be frozen: {line or 'no answer'}", details={"step": "snapshot"})
        yield frozen
        process.stdin.close()
        line = (await process.stdout.readline()).decode().strip()
        if line != "thawed":
            raise DriverFailed(
                f"what changed could not be copied within the {seconds:g} s for which files stand still",
                reason="tooSlow",
                hint="take it while less is written, stop the container first, or keep the volume in a pool with reflinks "
                "(XFS, Btrfs)",
                details={"step": "snapshot"},
            )
        frozen.pause_ms = (asyncio.get_running_loop().time() - began) * 1000
    except TimeoutError as problem:
        raise DriverFailed(
            f"a file system could not be frozen within {_START_SECONDS:g} s", details={"step": "snapshot"}
        ) from problem
    finally:
        process.stdin.close()  # it thaws them, whatever else happens
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
        if process.returncode is None:
            process.terminate()
