"""Whether a guest's QEMU may learn what its guest writes, so that its memory can be saved as it was while it runs on.

Linux gives that away through a device which is root's alone. QEMU opens it once and keeps it: so the device is opened to the one
user that this QEMU runs as, for that moment, by an access control list that names nobody else. Who died meanwhile leaves one
behind, and the next one replaces it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import AsyncIterator

from weft.contracts.clock import Clock

DEVICE = "/dev/userfaultfd"
_TURN_SECONDS, _LOOK_SECONDS = 5.0, 0.005
_LIST = "system.posix_acl_access"
_HEAD, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_VERSION, _NOBODY = 2, 0xFFFF_FFFF
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_READ_WRITE = 6


@contextlib.asynccontextmanager
async def tracks_writes(user: int, clock: Clock) -> AsyncIterator[bool]:
    """Let that user open the device while this lasts. False: this machine has none, or doesn't let anybody else have it."""
    try:
        turn = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        allowed = await _take_turn(turn, clock) and _allow(user)
        try:
            yield allowed
        finally:
            if allowed:
                _allow_nobody()
    finally:
        os.close(turn)


async def _take_turn(descriptor: int, clock: Clock) -> bool:
    """One driver of this machine at a time."""
    deadline = clock.elapsed() + _TURN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if clock.elapsed() > deadline:
                return False
        await clock.sleep(_LOOK_SECONDS)


def encode_list(user: int) -> bytes:
    """Pure. The owner and that user may read and write."""
    entries = (
        (_OWNER, _READ_WRITE, _NOBODY), (_USER, _READ_WRITE, user), (_GROUP, 0, _NOBODY), (_MASK, _READ_WRITE, _NOBODY),
        (_OTHERS, 0, _NOBODY),
    )  # fmt: skip
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _allow(user: int) -> bool:
    try:
        os.setxattr(DEVICE, _LIST, encode_list(user))
    except OSError:
        return False
    return True


def _allow_nobody() -> None:
    with contextlib.suppress(OSError):
        os.removexattr(DEVICE, _LIST)
        os.chmod(DEVICE, 0o600)
