"""Give up a worker's powers before it reads a user's policy: rights, network, processes, files, memory.

As root it becomes a user that owns nothing, in an empty network namespace, and can write no file. Without root it keeps its user:
that is for people who test their policies; a server without root runs none.
"""

from __future__ import annotations

import ctypes
import os
import resource

from weft.contracts.confinement.system_calls import OTHERS, refuse_calls
from weft.contracts.confinement.unprivileged import drop_privileges

# Beyond the users of guests (drivers/runtime/qemu/process/confinement.py); each worker has its own, so that none can touch another.
FIRST_USER, USERS = 0x7800_0000, 1 << 22
MEMORY_BYTES = 1 << 30  # of addresses; numpy takes about 200 MB of them
OPEN_FILES = 32
_NEW_MOUNTS, _NEW_IPC, _NEW_NET = 0x00020000, 0x08000000, 0x40000000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
_SET_MOUNTS, _HERE, _ALL_BELOW, _READ_ONLY = 442, -100, 0x8000, 0x1  # mount_setattr(2), which libc doesn't have yet


def confine(parent: int) -> None:
    """Give up all rights but to compute. ``parent`` is the process to die with. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        _must(libc.unshare(_NEW_MOUNTS | _NEW_NET | _NEW_IPC))
        _must(libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
        read_only = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
        _must(libc.syscall(_SET_MOUNTS, _HERE, b"/", _ALL_BELOW, ctypes.byref(read_only), ctypes.sizeof(read_only)))
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: 0,
    }
    drop_privileges(parent, limits, FIRST_USER + os.getpid() % USERS)
    refuse_calls(OTHERS, unix_sockets=True)


def _must(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
