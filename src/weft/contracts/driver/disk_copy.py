"""Disks of snapshots that are copied out of a pool, and disks that are copied into it to become a snapshot. Optional, of a volume
driver with ``Layers``. The copy goes over NBD, by a process that need not know the pool."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.layers import KeptSnapshot


class ServedDisk(msgspec.Struct, frozen=True):
    socket: str  # of its NBD server: a Unix socket
    size_bytes: int
    extents: list[tuple[int, int, bool]]  # offset, length, whether it is zero; in order
    is_whole: bool  # the extents are all that may hold data, not what changed


class DiskCopies(Protocol):
    def read(
        self, snapshot_id: str, disk: str, *, base: str | None, base_format: str, since: str = ""
    ) -> AbstractAsyncContextManager[ServedDisk]:
        """Serve a snapshot's disk to read, on the image ``base``. Its extents are those that may differ from the same disk of
        snapshot ``since``; without one, or if that disk is no part of what this one stands on, those that may hold data. Layers
        may be absorbed meanwhile. Raises NotFound (``snapshotGone``), DriverFailed."""

    def write(self, layer_id: str, size_bytes: int) -> AbstractAsyncContextManager[str]:
        """The socket of an empty disk to write to, for ``take_in``; what an earlier call left of it is gone. Raises
        DriverFailed."""

    async def take_in(self, snapshot: KeptSnapshot) -> None:
        """Keep a snapshot of disks that were written, each its only layer. Repeated is fine. Raises NotFound for one that is
        missing, DriverFailed."""


@runtime_checkable
class CopiesDisks(Protocol):
    copies: DiskCopies
