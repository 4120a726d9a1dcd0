"""Snapshots of a running guest: all its disks switch to new files at one instant, and its memory of that instant is kept if asked.

One at a time per guest, under a ``key``; every step may be repeated, also by a driver made anew after a crash. Whatever happens
to a snapshot, the guest runs on. What it wrote before the switch is in its former files, which nothing writes to any more, and
what it writes afterwards in the overlays. ``done`` and ``failed`` are remembered until ``forget``, also for a guest that has
ended since.

The memory's file holds the machine that it is of, and a guest whose plan names it (``GuestPlan.memory``) begins from it.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.kinds.fields.allocated_snapshot import Consistency


class SnapshotPlan(msgspec.Struct, frozen=True):
    key: str
    overlays: dict[
        str, str
    ]  # serial → path of an empty qcow2 as large as the disk, without a backing file in its header; of an RBD image
    # rbd:POOL/IMAGE@NAME: it takes a snapshot of itself with that name, and stays what the disk writes to
    memory: str = ""  # path where the memory appears once it is whole; "": disks only
    freeze: bool = (
        True  # have the guest's agent freeze file systems, if it has one; never with memory, which needs none
    )
    # The guest stands still after the switch until ``release``, so many seconds at most; 0: it runs on at once.
    hold: float = 0.0


class SnapshotFacts(msgspec.Struct, frozen=True):
    key: str
    # none: the key is unknown, or was cut off before anything was done; switching: ask again; holding: the guest stands still until
    # it is released; saving: the memory is being written
    phase: Literal["none", "switching", "holding", "saving", "done", "failed"]
    switched: bool = False  # the guest writes to the overlays; for good
    consistency: Consistency = "crash"
    pause_ms: float = 0.0  # how long the guest stood still
    memory_bytes: int = 0  # of the file, once it is whole
    taken_at: float = 0.0  # unix seconds by this node's clock
    message: str = ""  # why it failed, or why it is less consistent than was asked


class Snapshots(Protocol):
    async def take(self, guest_id: str, plan: SnapshotPlan) -> SnapshotFacts:
        """Switch the disks; returns once that is done, while the memory goes on being saved. Raises IllegalTransition for a
        guest that doesn't run, migrates, or whose disk is being relocated; DriverFailed if nothing was switched."""

    async def release(self, guest_id: str, key: str) -> SnapshotFacts:
        """Let a held guest run on: its memory begins to be saved, or it is done; failed if it has not stood still until now.
        Repeated is fine. A guest that nobody releases runs on by itself, and its snapshot has failed."""

    async def progress(self, guest_id: str, key: str) -> SnapshotFacts:
        """The facts now. What a driver left that died is found out from the machine, and finished; a guest that it held runs on."""

    async def cancel(self, guest_id: str, key: str) -> SnapshotFacts:
        """Drop memory that isn't whole yet, let a held guest run on, and end the snapshot. An unknown key is fine."""

    async def forget(self, guest_id: str, key: str) -> None:
        """Drop the remembered facts of this key, once it is done or failed."""

    async def find_user(self, guest_id: str) -> int:
        """The number of the user as which the guest's machine runs."""

    async def absorb(self, guest_id: str, serial: str, layer: str) -> None:
        """Copy what the layer at this path holds into the file above it while the guest runs, and close it; returns once that is
        done. Repeated is fine. Raises IllegalTransition for a guest that doesn't run, DriverFailed."""


@runtime_checkable
class CanSnapshot(Protocol):
    snapshots: Snapshots
