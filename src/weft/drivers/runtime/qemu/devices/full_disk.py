"""A machine that stands still since a disk of it couldn't be written: why, and how it goes on once its storage has space again.

QEMU repeats the write when the machine goes on, so the guest notices nothing but the pause. Other errors than a full storage wait
for people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from weft.contracts.clock import Clock
from weft.drivers.runtime.qemu.qmp import Qmp
from weft.objects.errors import DriverFailed, Unavailable

IO_ERROR = "io-error"  # QEMU's word for a machine that stands still for it
AGAIN_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # in which a write fails again
FULL = "the storage of one of its disks is full: free space there, and it goes on automatically"
FAILED = "one of its disks can't be read or written: see the kernel's log on its node, then restart it"


class GuestMachine(Protocol):
    """A guest that runs. ``status`` is QEMU's word; ``tried`` collects the names of events while a try is under way."""

    status: str
    trouble: str
    tried: list[str] | None
    ended: asyncio.Event
    lock: asyncio.Lock
    clock: Clock
    notify: Callable[[], None]

    def monitor(self) -> Qmp:
        """Raises Unavailable."""


async def find_trouble(qmp: Qmp) -> str:
    """FULL, FAILED, or "" if QEMU knows no error of a disk."""
    found = {str(block.get("io-status", "ok")) for block in await qmp.execute("query-block")}
    return FULL if "nospace" in found else FAILED if "failed" in found else ""


async def wait_for_space(guest: GuestMachine, is_held: Callable[[], bool]) -> None:
    """Say what is wrong with its disk, and let it go on once that is over; not while it ``is_held``: a migration or a snapshot
    decides then."""
    while guest.status == IO_ERROR and not guest.ended.is_set():
        try:
            trouble = await find_trouble(guest.monitor())
            if trouble != guest.trouble:
                guest.trouble = trouble
                guest.notify()
            await guest.clock.sleep(AGAIN_SECONDS)
            if trouble == FULL:
                await _try_again(guest, is_held)
        except (Unavailable, DriverFailed):
            await guest.clock.sleep(AGAIN_SECONDS)
    guest.trouble = ""


async def _try_again(guest: GuestMachine, is_held: Callable[[], bool]) -> None:
    """Try to continue the guest. QEMU's events during the try are not news: a storage that is still full stops the guest
    immediately."""
    async with guest.lock:
        if guest.status != IO_ERROR or is_held():
            return
        guest.tried = []
        try:
            await guest.monitor().execute("cont")
            await guest.clock.sleep(_LOOK_SECONDS)
        finally:
            said, guest.tried = guest.tried, None
        if "BLOCK_IO_ERROR" not in said and "RESUME" in said:
            guest.status = "running"
            guest.notify()
