"""Work in a thread that nobody else uses: it may leave the process's namespaces for itself, and what it starts comes along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from weft.drivers.linux.syscalls import CLONE_NEWNS, MS_BIND, MS_REC, MS_SLAVE, mount, set_read_only, unmount, unshare

T = TypeVar("T")


async def run_in_own_thread(work: Callable[[], T]) -> T:
    """``work`` in a thread that ends with it, whatever it did to that thread. Cancelled, it still ends first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # the caller gets it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        raise


def leave_mounts(hidden: Collection[str]) -> None:
    """This thread sees mounts of its own from here on, without those ``hidden``. /dev/null can be read and written there, but not
    given away: crun gives a container's standard input to the container's user, and the device's owner may close it to all others.
    """
    unshare(CLONE_NEWNS)
    mount("", "/", "", MS_REC | MS_SLAVE)
    for point in hidden:
        unmount(point)
    mount(os.devnull, os.devnull, "", MS_BIND)
    set_read_only(os.devnull)
