"""Confines the process that unpacks a layer before it reads a byte of it: no node files, no network, few rights. The layer's
folder becomes its root, so no name, link or `..` in a layer leads anywhere else, whatever the code here makes of it."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 1800
_OPEN_FILES = 64
_NEW_MOUNTS, _NEW_IPC, _NEW_PROCESSES, _NEW_NET = 0x00020000, 0x08000000, 0x20000000, 0x40000000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000
_PARENT_DIES, _DROP_BOUND, _NO_NEW_PRIVILEGES = 1, 24, 38
_VERSION_3 = 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}  # capset(2), which libc has only beside it
# What ownership, modes and security.capability take: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP. A whiteout takes none.
_KEPT = (0, 1, 3, 4, 31)
_LAST = 63


def confine(root: str, most_bytes: int) -> None:
    """Go on as a process for which ``root`` is all there is; no file may be larger than ``most_bytes``. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc, libc.unshare(_NEW_MOUNTS | _NEW_NET | _NEW_IPC | _NEW_PROCESSES))
    _go_on_alone(libc)
    _must(libc, libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
    os.chdir(root)
    os.chroot(".")
    os.umask(0)
    os.setgroups([])
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, most_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    for capability in range(_LAST + 1):
        if capability not in _KEPT:
            libc.prctl(_DROP_BOUND, capability, 0, 0, 0)  # those that this kernel doesn't know are refused
    kept = sum(1 << capability for capability in _KEPT)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; then the upper 32 of each
    _must(libc, libc.syscall(_CAPSET[os.uname().machine], ctypes.byref(header), ctypes.byref(sets)))
    _must(libc, libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))


def _go_on_alone(libc: ctypes.CDLL) -> None:
    """Return in a child that knows no other process; this one only waits for it, and the child ends with it."""
    watching, held = os.pipe()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.close(held)
    _must(libc, libc.prctl(_PARENT_DIES, int(signal.SIGKILL), 0, 0, 0))
    if select.select([watching], [], [], 0)[
        0
    ]:  # it ended before that; who its parent is, a child of its own world can't see
        os._exit(1)
    os.close(watching)


def _must(libc: ctypes.CDLL, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
