"""System calls of mount namespaces, one of memory, and one of the clock, that Python lacks. Each acts on the calling thread alone,
but for ``small_pages``.

Source: mount_setattr(2), open_tree and move_mount as in the kernel's headers; numbers are the same on all architectures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x0002_0000, 0x1000_0000, 0x4000_0000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 8, 1 << 12, 1 << 14, 1 << 19
MNT_DETACH = 2

_MOUNT_SETATTR, _OPEN_TREE, _MOVE_MOUNT = 442, 428, 429
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x0010_0000
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 1 << 2

_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42

_TIMEX_BYTES, _TIME_ERROR = 208, 5

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def enter(descriptor: int, kind: int) -> None:
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: Path | str, kind: str, flags: int = 0, options: str = "") -> None:
    """Raises OSError that names the target."""
    words = (source.encode(), os.fsencode(target), kind.encode())
    _check(_libc.mount(*words, ctypes.c_ulong(flags), options.encode()), str(target))


def unmount(target: Path | str) -> None:
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), str(target))


def set_read_only(target: Path | str) -> None:
    """Nothing at the mount ``target`` can be changed any more; a device there still takes what is written to it. Raises OSError."""
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(_libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), 0, attributes, len(attributes)), str(target))


def mount_shifted(source: Path | str, target: Path | str, user_namespace: int) -> None:
    """``source`` seen at ``target`` with the owners that the namespace (a descriptor) maps its files' owners to.
    Raises OSError where its file system can't do that."""
    path = os.fsencode(source)
    tree = _libc.syscall(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    _check(tree, str(source))
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes)), str(source))
        result = _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _check(result, str(target))
    finally:
        os.close(tree)


class FilesAs:
    """A context in which this thread makes files as another user, with all the rights it had. An overlay keeps the user that
    mounted it for what it does in its own folders; over shifted ones that user must be one that they know."""

    def __init__(self, user: int) -> None:
        self._user = user

    def __enter__(self) -> None:
        _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
        _libc.setfsuid(self._user)
        _libc.setfsgid(self._user)

    def __exit__(self, *_: object) -> None:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        _check(_libc.prctl(_PR_SET_SECUREBITS, 0, 0, 0, 0), "securebits")


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """Start programs with memory in small pages only: of a program that uses little of much, less is resident. It holds for this
    process as well meanwhile."""
    before = _libc.prctl(_PR_GET_THP_DISABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_THP_DISABLE, int(before > 0), 0, 0, 0)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def is_clock_synchronized() -> bool | None:
    """Whether a time service keeps this machine's clock, as adjtimex(2) says; None if it doesn't."""
    answer = _libc.adjtimex(ctypes.create_string_buffer(2 * _TIMEX_BYTES))  # no modes: it only reads
    return None if answer < 0 else answer != _TIME_ERROR
