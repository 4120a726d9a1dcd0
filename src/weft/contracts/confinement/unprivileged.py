"""How a process that reads strangers' bytes gives up its rights before it does."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Mapping

NOBODY = 65534
_PARENT_DIES, _NO_NEW_PRIVILEGES = 1, 38  # prctl(2)
_NEW_NET = 0x4000_0000


def drop_privileges(parent: int, limits: Mapping[int, int], user: int = NOBODY) -> None:
    """Go on without rights, within ``limits``: the most of each ``resource.RLIMIT_…``; lower ones stay. As root it becomes
    ``user``, or nobody where this user namespace has no such user; without root it keeps its user. The kernel kills it
    when its parent ends: the thread that started it, of the process ``parent``. Raises OSError, also if that has ended.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        _become(user)
    _must(ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    end_with(parent)  # after the change of user, which would undo it
    for what, most in limits.items():
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))


def leave_network() -> None:
    """Leave the network: as root, go on in an empty network namespace; a root that may not have one, as in a container, stays where
    it is. Raises OSError."""
    if os.geteuid() == 0:
        try:
            _must(ctypes.CDLL(None, use_errno=True).unshare(_NEW_NET))
        except PermissionError:
            return


def end_with(parent: int) -> None:
    """The kernel kills this process when the process ``parent`` ends. Raises OSError if that has ended already."""
    _must(ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DIES, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the process that started this one has ended")


def _become(user: int) -> None:
    try:
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as problem:
        if problem.errno != errno.EINVAL or user == NOBODY:
            raise
        _become(NOBODY)


def _must(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
