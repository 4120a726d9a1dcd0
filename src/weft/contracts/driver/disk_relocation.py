"""Relocation of a running guest's disk to another file of its node, while the guest writes to it.

One at a time per guest, under a ``key``; every step may be repeated, also by a driver made anew after a crash. The old file
holds all that the guest has written until the phase is ``there``, and the new one from then on: the guest writes nothing
between the two. ``there`` is remembered until ``forget``, also for a guest that has ended since.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.runtime import GuestDisk


class RelocationFacts(msgspec.Struct, frozen=True):
    # none: the key is unknown; ready: both files are written to; pivoting: the pivot was interrupted, ask for it again
    phase: Literal["none", "copying", "ready", "pivoting", "there", "failed"]
    message: str = ""
    done_bytes: int = 0  # of the disk
    total_bytes: int = 0


class Relocations(Protocol):
    async def begin(self, guest_id: str, key: str, disk: GuestDisk, bytes_per_second: int = 0) -> None:
        """Copy the content of the disk of this serial to ``disk``, an empty one as large on the same base. Raises
        IllegalTransition for a guest that doesn't run or that migrates; DriverFailed."""

    async def progress(self, guest_id: str, key: str) -> RelocationFacts: ...

    async def pivot(self, guest_id: str, key: str) -> None:
        """Switch the guest to the new file; it stands still until that is written down. Raises DriverFailed (the guest goes on
        with the old file), Unavailable."""

    async def cancel(self, guest_id: str, key: str) -> None:
        """End the copy and close the new file. Raises IllegalTransition once the guest is ``there``."""

    async def forget(self, guest_id: str, key: str) -> None:
        """Drop the remembered phase of this key."""


@runtime_checkable
class CanRelocate(Protocol):
    relocations: Relocations
