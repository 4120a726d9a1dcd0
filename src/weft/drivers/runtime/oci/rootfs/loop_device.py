"""A raw disk mounted in the calling thread's mounts: a loop device that goes with its last user, and so with the last process in
those mounts.

Source: loop(4), LOOP_CONFIGURE and struct loop_config as in the kernel's linux/loop.h (5.8 and later).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

from weft.contracts.driver.disk_lock import hold_disk
from weft.drivers.linux.syscalls import MS_NODEV, MS_NOSUID, mount

_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C0A, 0x4C82
_AUTOCLEAR, _DIRECT_IO = 4, 16
_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q8Q")
_SECTOR = 512  # as a machine's disk has: a small file system's blocks are smaller than a page
_TRIES = 64
_LOOKS, _LOOK_SECONDS = 500, 0.02  # the run before lets go of it a moment after its end
# A stranger may have made the file system: what it says of errors must not be the node's end.
_OPTIONS = "errors=remount-ro"


def mount_disk(source: str, target: Path, file_system: str) -> None:
    """The raw disk ``source`` at ``target``. Held so that no machine and no other mount has it meanwhile. Raises OSError."""
    descriptor = os.open(source, os.O_RDWR | os.O_CLOEXEC)
    try:
        _hold(descriptor, source)
        device, name = _attach(descriptor, source)
    finally:
        os.close(descriptor)
    try:
        mount(name, target, file_system, MS_NOSUID | MS_NODEV, _OPTIONS)
    finally:
        os.close(device)
    with contextlib.suppress(OSError):  # databases want their folder empty; a check makes it anew if it needs it
        (target / "lost+found").rmdir()


def _hold(descriptor: int, source: str) -> None:
    pause = threading.Event()
    for _ in range(_LOOKS):
        if hold_disk(descriptor):
            return
        pause.wait(_LOOK_SECONDS)
    raise OSError(errno.EBUSY, "it is still in use", source)


def _attach(descriptor: int, source: str) -> tuple[int, str]:
    """A loop device on the file, open, and its name. It keeps the file open, and with it the lock."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, _configure(descriptor, source))
            except OSError as problem:
                os.close(device)
                if problem.errno != errno.EBUSY:  # else another was faster
                    raise OSError(problem.errno, os.strerror(problem.errno or 0), source) from None
                continue
            return device, name
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free", source)


def _configure(descriptor: int, source: str) -> bytes:
    shown = os.fsencode(source)[-63:]
    return _CONFIG.pack(
        descriptor, _SECTOR, 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR | _DIRECT_IO, shown, b"", b"", 0, 0, *([0] * 8)
    )
