"""Mounts that a thread has for itself, as containers and function instances are started in."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest

from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


async def test_the_null_device_can_be_used_but_neither_given_away_nor_closed_to_others() -> None:
    before = os.stat(os.devnull)

    def attempt() -> list[int | None]:
        leave_mounts(())
        descriptor = os.open(os.devnull, os.O_RDWR)
        try:
            assert os.write(descriptor, b"lost") == 4 and os.read(descriptor, 4) == b""
            return [
                find_refusal(lambda: os.fchown(descriptor, before.st_uid, before.st_gid)),
                find_refusal(lambda: os.fchmod(descriptor, stat.S_IMODE(before.st_mode))),
                find_refusal(lambda: os.chown(os.devnull, before.st_uid, before.st_gid)),
            ]
        finally:
            os.close(descriptor)

    assert await run_in_own_thread(attempt) == [errno.EROFS] * 3


def find_refusal(act: Callable[[], None]) -> int | None:
    try:
        act()
    except OSError as problem:
        return problem.errno
    return None
