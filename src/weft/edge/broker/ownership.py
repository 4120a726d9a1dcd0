"""Owner of the broker's files: the broker becomes a user of its own, and reads them as that."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

_USER = "mosquitto"  # of Debian's package


def find_user() -> pwd.struct_passwd:
    """Find the owner of the broker's files: the package's user; this process's own where that isn't root."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(_USER)
    return pwd.getpwuid(os.geteuid())


def give(folder: Path, user: pwd.struct_passwd) -> None:
    """Make ``folder``, and the files in it, the user's. Links in it are left alone, as is all that isn't a plain file with one
    name: who has taken over that user may have put them there, and would own what they lead to."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, user.pw_uid, user.pw_gid)
        os.fchmod(descriptor, 0o700)
        for name in os.listdir(descriptor):
            with contextlib.suppress(FileNotFoundError):
                _give_one(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor), user)
    finally:
        os.close(descriptor)


def _give_one(opened: int, user: pwd.struct_passwd) -> None:
    """Takes the descriptor over."""
    try:
        about = os.fstat(opened)
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
            os.chown(f"/proc/self/fd/{opened}", user.pw_uid, user.pw_gid)  # fchown refuses O_PATH
    finally:
        os.close(opened)


def is_there(path: Path, data: bytes, user: pwd.struct_passwd) -> bool:
    """Whether the file is the user's, and has just this."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            is_right = about.st_uid == user.pw_uid and stat.S_IMODE(about.st_mode) == 0o600
            return is_right and file.read(len(data) + 1) == data
    except OSError:
        return False
