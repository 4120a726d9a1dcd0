"""Layers: a disk's content is a chain of files: an image or nothing at the bottom, frozen layers, and the volume's own file.

A snapshot keeps the layers of several disks as they were at one instant. The driver's own records say which layers a volume and a
snapshot stand on; a disk's header, which its guest's machine can write, is never trusted for that. What nothing refers to any more
is removed. Every step may be repeated, also by a driver made anew after a crash.

Storage may keep layers inside of the volumes' images, as Ceph does: then there is no overlay. A running guest's machine has the
image itself take a snapshot, in place of the switch, and whatever needs no layer goes without a copy.

Layers and snapshots may go with a disk to other storage, each as a file (``LayerTransfer``). The other storage gives layers ids of
its own. It holds what has come until the disk stands on it, and keeps the snapshots once the disk is there for good; ``remove`` of
the volume drops what is held.

Disks of snapshots may be copied out of the pool, and others into it to become a snapshot (``CopiesDisks``). The copy goes over
NBD, by a process that need not know the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.volume import VolumeFacts

MOST_LAYERS = 30  # of one volume
MEMORY = ".memory"  # after a snapshot's id: the name of its memory's file


class Layer(msgspec.Struct, frozen=True):
    """A file that is never written to again, but to take up a layer below it. nbd: a file that stands for a disk which is served
    elsewhere, always the lowest; nobody can read it. rbd: no file, but a snapshot inside of an RBD image."""

    id: str
    path: str  # rbd: rbd:POOL/IMAGE@LAYER
    format: Literal["qcow2", "raw", "nbd", "rbd"]
    used_bytes: int
    server: str = ""  # nbd: NAME/EXPORT, a Unix socket's name that is in no folder


class KeptDisk(msgspec.Struct, frozen=True):
    """A disk of a snapshot. ``layers``: ids, bottom first; the last one is the disk as it was."""

    layers: tuple[str, ...]
    size_bytes: int  # that the guest saw
    name: str = ""  # of the volume, for people; "" for a root disk


class KeptSnapshot(msgspec.Struct, frozen=True):
    """A snapshot's disks in this pool, by what the workload called them: ``root``, or a volume's uid."""

    id: str
    uid: str
    disks: dict[str, KeptDisk]
    memory_bytes: int = 0  # of its memory's file; 0: none here
    used_bytes: int = 0  # its memory, and the layers that no lower snapshot counts; volumes may stand on them
    workload: str = ""  # uid of the one whose disks they are: the snapshot goes with them to other storage
    taken_at: float = 0.0  # unix seconds; 0: not recorded. Which snapshot of a volume is the last one
    source: str = ""  # of a point of a replica: uid of the snapshot at the other cluster that it is a copy of
    consistency: str = ""  # of a point: as at its source
    final: bool = False  # of a point: its source has written nothing since
    came: bool = False  # it was taken in (``DiskCopies``), so its disks are whole without an image; the pool sets it


class TakenFacts(msgspec.Struct, frozen=True):
    """How a snapshot was taken of volumes that no machine has."""

    consistency: Literal[
        "filesystem", "stopped"
    ]  # some were mounted, and their file systems frozen; or nobody had them
    pause_ms: float  # how long writers stood still


class Layers(Protocol):
    async def list_layers(self, volume_id: str) -> list[Layer]:
        """The layers that the volume stands on, bottom first."""

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        """Note that the volume's present file becomes this layer, and return the path of an empty overlay that is as large. A guest
        may write to the overlay from now on. For a layer that is finished it is the volume's own path. A layer inside of an image
        has no overlay: its own path is returned, rbd:POOL/IMAGE@LAYER, and the guest's machine or ``finish_layer`` makes it. Raises
        NotFound,
        InvalidInput (``tooManyLayers``, ``unsupported``), IllegalTransition while another layer is unfinished, DriverFailed
        (``noSpace``)."""

    async def finish_layer(self, volume_id: str, layer_id: str) -> Layer:
        """The overlay is the volume from now on. Raises NotFound for a layer that was not begun."""

    async def undo_layer(self, volume_id: str, layer_id: str) -> None:
        """The volume stays what it was; nothing was written to the overlay. One that is finished, or unknown, is left alone."""

    async def find_unfinished(self, volume_id: str) -> str:
        """The layer that was begun and neither finished nor undone; ""."""

    async def keep(self, snapshot: KeptSnapshot) -> None:
        """Keep these layers and the memory for a snapshot, also layers that are unfinished yet; ``used_bytes`` is ignored. Raises
        NotFound for a layer that isn't here, DriverFailed."""

    async def list_kept(self) -> list[KeptSnapshot]: ...

    async def drop(self, snapshot_id: str) -> None:
        """Forget a snapshot and its memory. Absent is fine. Layers that are unneeded then may go at once."""

    def memory_path(self, snapshot_id: str) -> str:
        """The path of the snapshot's memory, once it is whole; half of it may be beside, under this name with more behind it. "":
        this storage has no place for memory."""

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        """Make the volume as the snapshot's disk was, if it isn't there; it is at least ``size_bytes`` large. Raises NotFound
        (``snapshotGone``), DriverFailed (``noSpace``)."""

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        """Make the volume as the snapshot's disk was. What stands there becomes layer ``layer_id`` of its own chain, which the
        caller has kept (``keep_present``), or goes. Nobody has the volume open. Repeated with the same ``layer_id``, it leaves
        alone what was written since. A volume with a file system that a container had mounted is raw: what stands there goes
        in any case, so take a snapshot of it first. Raises as ``clone``, IllegalTransition for a volume with an unfinished
        layer."""

    async def keep_present(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> None:
        """Keep what stands in volumes that nobody has open, before ``replace``: ``layers`` gives for each volume's id the layer
        that its file will become; ``snapshot.disks`` name those layers as their last ones. Repeated, also after ``replace``, it
        changes nothing. Raises NotFound, InvalidInput (``unsupported``), IllegalTransition, DriverFailed."""

    async def list_unneeded(self, volume_id: str) -> list[str]:
        """Layers of its chain that no snapshot ends with and that nothing else stands on, bottom first: the file above may take
        their content."""

    async def forget_layer(self, volume_id: str, layer_id: str) -> None:
        """The file above has the layer's content now: the layer leaves every chain in which that file is above it, and is removed
        once it is in none."""

    async def absorb_layer(self, volume_id: str, layer_id: str, *, base: str | None, base_format: str) -> None:
        """Unite the layer with the file above it, and forget it, for a volume that nobody has open; ``base`` is the image at the
        bottom. One that is needed (``list_unneeded``), or unknown, is left alone. Raises DriverFailed (``noSpace``)."""


@runtime_checkable
class HasLayers(Protocol):
    layers: Layers


class Taking(Protocol):
    async def take(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> TakenFacts:
        """Take a snapshot of volumes that no machine has, all as they are at one instant, and keep it. ``layers`` gives for each
        volume's id the layer to make; of ``snapshot.disks`` only the names count. What containers have mounted is frozen for a
        bounded time and copied: the layer holds what differs from the volume's last snapshot. Others become layers as they lie.
        Repeated, it changes nothing. Raises NotFound, IllegalTransition for a volume that a machine has, DriverFailed (``noSpace``,
        ``tooSlow``): then nothing is kept."""


@runtime_checkable
class CanTake(Protocol):
    taking: Taking


class CarriedDisk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The layers that a disk stands on, by the ids that it will have there, and the snapshots of this disk."""

    layers: tuple[str, ...] = ()  # bottom first
    snapshots: tuple[KeptSnapshot, ...] = ()
    replaced: str = ""  # the layer that its content became when it was replaced last

    def list_files(self) -> list[str]:
        """Names of the files: ids of layers, and memories."""
        layers = {
            *self.layers,
            *(one for kept in self.snapshots for disk in kept.disks.values() for one in disk.layers),
        }
        return [*sorted(layers), *(f"{kept.id}{MEMORY}" for kept in self.snapshots if kept.memory_bytes)]


class LayerTransfer(Protocol):
    async def pack(
        self, volume_id: str, disk: str, workload: str, key: str, *, memory: bool
    ) -> tuple[CarriedDisk, dict[str, str]]:
        """Pack what goes with the disk of workload ``workload`` (uid), and the path of each file; ids there depend on ``key``,
        which names the transfer. ``disk`` is its name in snapshots, ``memory``: theirs goes too. Raises IllegalTransition while a
        snapshot of it is being taken, DriverFailed."""

    async def expect(self, volume_id: str, carried: CarriedDisk) -> None:
        """Hold what comes for the volume. What was held for it before is dropped, but for files of the same name. Raises
        InvalidInput."""

    async def begin(self, volume_id: str, name: str) -> str:
        """The path to write a file to; an earlier unfinished one is gone. Raises InvalidInput for one that isn't expected."""

    async def complete(self, volume_id: str, name: str) -> None:
        """The file is whole. Raises InvalidInput for one that is not a layer, DriverFailed."""

    async def adopt(self, volume_id: str) -> None:
        """The volume, which nobody has written to, stands on what is held for it, if anything is. Raises IllegalTransition while
        files are missing. A volume that is received later (``CanReceive``) stands on it too."""

    async def settle(self, volume_id: str) -> None:
        """The disk is here for good: its snapshots are kept. Nothing held is fine."""

    async def release(self, disk: str, workload: str, *, memory: bool) -> None:
        """The disk is elsewhere for good: the workload's snapshots of it are forgotten here, with their ``memory``."""


@runtime_checkable
class CarriesLayers(Protocol):
    transfer: LayerTransfer


class ServedDisk(msgspec.Struct, frozen=True):
    socket: str  # of its NBD server: a Unix socket
    size_bytes: int
    extents: list[tuple[int, int, bool]]  # offset, length, whether it is zero; in order
    is_whole: bool  # the extents are all that may hold data, not what changed
    since: str = ""  # what the earlier snapshot calls the disk that the changes are from; "": as this one does
    since_name: str = ""  # the volume's name there, for people


class DiskCopies(Protocol):
    def read(
        self, snapshot_id: str, disk: str, *, base: str | None, base_format: str, since: str = ""
    ) -> AbstractAsyncContextManager[ServedDisk]:
        """Serve a snapshot's disk to read, on the image ``base``. Its extents are those that may differ from the disk of snapshot
        ``since`` that it stands on, which may have another name there; without such a disk, those that may hold data. Layers may be
        absorbed meanwhile. Raises NotFound (``snapshotGone``), DriverFailed."""

    def write(
        self, layer_id: str, size_bytes: int, *, on: str = "", disk: str = ""
    ) -> AbstractAsyncContextManager[str]:
        """The socket of a disk to write to, for ``take_in``; what an earlier call left of it is gone. It is empty, or else reads as
        ``disk`` of snapshot ``on`` does, which it is no smaller than; then only what is written is in the layer. Raises NotFound
        (``snapshotGone``), InvalidInput (``unsupported``, ``tooSmall``), DriverFailed."""

    async def stand_in(self, layer_id: str, server: str) -> None:
        """A file that stands for a disk which is served there (``Layer.server``), for ``take_in``. Raises DriverFailed,
        InvalidInput (``unsupported``)."""

    async def take_in(self, snapshot: KeptSnapshot, *, on: str = "") -> None:
        """Keep a snapshot of disks that were written, each its only layer, all in one durable step. A disk that snapshot ``on`` has
        too stands on its layers. Repeated is fine. Raises NotFound for one that is missing, or for ``on`` (``snapshotGone``),
        InvalidInput (``unsupported``, ``tooManyLayers``), DriverFailed."""

    async def discard(self, layer_ids: Iterable[str]) -> None:
        """Remove what was written of these and not taken in. Repeated is fine. Raises OSError."""

    async def list_mergeable(self) -> list[str]:
        """Layers of snapshots that were taken in, lowest first, that no snapshot ends with and no volume stands on, and that have
        the same file above wherever they are. Raises DriverFailed."""

    async def merge(self, layer_id: str) -> None:
        """Unite such a layer with the file above it. One that is needed, or unknown, is left alone. It may be cut off anywhere, and
        is repeated then. Raises DriverFailed (``noSpace``)."""


@runtime_checkable
class CopiesDisks(Protocol):
    copies: DiskCopies
