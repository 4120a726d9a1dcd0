"""Space that is given up where a file system is full to its last block: deleting a backup writes some small objects first."""

from __future__ import annotations

import os

from weft.backup.errors import is_full
from weft.backup.storage.contract import Storage
from weft.objects.errors import Unavailable

_KEY, _SIZES = "clean-up/reserve", (1 << 20, 32 << 10)  # bytes; the smaller one is enough for some deletions


def keep_reserve(storage: Storage) -> bool:
    """Make it, as large as there is space for, unless it is there. Whether it is there now, or isn't needed."""
    if not storage.fills_up:
        return True
    there = max((found.size for found in storage.list("clean-up/") if found.key == _KEY), default=0)
    for size in _SIZES:
        if size <= there:
            return True
        try:
            storage.put(_KEY, os.urandom(size))  # no file system makes this shorter
            return True
        except Unavailable as problem:
            if not is_full(problem):
                raise
    return False


def give_up_reserve(storage: Storage) -> None:
    storage.delete(_KEY)
