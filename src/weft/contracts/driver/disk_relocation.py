"""Moving a running guest's disk to another file of its node, while it is written to.

One at a time per guest, under a ``key``; every step may be repeated, also by a driver made anew after a crash. The old file
holds all that the guest has written until ``there`` has been said, and the new one from then on: the guest writes nothing
between the two. ``there`` is remembered until ``forget``, also by a guest that has ended since.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.runtime import GuestDisk


class RelocationFacts(msgspec.Struct, frozen=True):
    """``none``: nothing is known of such a key; ``ready``: both files are written to; ``pivoting``: it was cut off there, and
    is to be asked for again. Bytes of the disk."""

    phase: Literal["none", "copying", "ready", "pivoting", "there", "failed"]
    message: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class Relocations(Protocol):
    async def begin(self, guest_id: str, key: str, disk: GuestDisk, bytes_per_second: int = 0) -> None:
        """Copy what is on the disk of this serial to ``disk``, an empty one as large on the same base. Raises
        IllegalTransition for a guest that doesn't run, or moves; DriverFailed."""

    async def progress(self, guest_id: str, key: str) -> RelocationFacts: ...

    async def pivot(self, guest_id: str, key: str) -> None:
        """The new file is the guest's; it stands still for it, for as long as that takes to write down. Raises DriverFailed
        (it goes on with the old one), Unavailable."""

    async def cancel(self, guest_id: str, key: str) -> None:
        """Nothing of it is under way, and the new file is in nobody's hands. Raises IllegalTransition once it is there."""

    async def forget(self, guest_id: str, key: str) -> None:
        """What was said of it is known."""


@runtime_checkable
class CanRelocate(Protocol):
    relocations: Relocations
