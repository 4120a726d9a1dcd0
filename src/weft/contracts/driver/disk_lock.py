"""The lock on a disk's file that is in use, as QEMU takes it: by it, a machine, a mounted disk and a check never have one file
at once, on this node or on others that see it. The lock belongs to the open file, not to a process: a loop device holds it for
as long as it holds the file.

Source: QEMU's docs/system/qemu-block-drivers (image locking); its bytes 100 and 200 on, one for each kind of access and what is
shared.
"""

from __future__ import annotations

import errno
import fcntl
import struct

_FIRST, _BYTES = 100, 200
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, 64 bits


def hold_disk(descriptor: int) -> bool:
    """Hold the file for oneself until every copy of ``descriptor`` (open to write) is closed; False: somebody else has it.
    Raises OSError."""
    try:
        request = _FLOCK.pack(fcntl.F_WRLCK, 0, _FIRST, _BYTES, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as problem:
        if problem.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
