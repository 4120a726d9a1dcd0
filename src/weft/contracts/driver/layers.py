"""Layers: a disk's content is a chain of files: an image or nothing at the bottom, frozen layers, and the volume's own file.

A snapshot keeps the layers of several disks as they were at one instant. The driver's own records say which layers a volume and a
snapshot stand on; a disk's header, which its guest's machine can write, is never trusted for that. What nothing refers to any more
is removed. Every step may be repeated, also by a driver made anew after a crash.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import msgspec

from weft.contracts.driver.volume import VolumeFacts

MOST_LAYERS = 30  # of one volume


class Layer(msgspec.Struct, frozen=True):
    """A file that is never written to again, but to take up a layer below it."""

    id: str
    path: str
    format: Literal["qcow2", "raw"]
    used_bytes: int


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
    used_bytes: int = 0  # of the layers that only it refers to, and its memory


class Layers(Protocol):
    async def list_layers(self, volume_id: str) -> list[Layer]:
        """The layers that the volume stands on, bottom first."""

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        """Note that the volume's present file becomes this layer, and return the path of an empty overlay that is as large. A guest
        may write to the overlay from now on. For a layer that is finished it is the volume's own path. Raises NotFound,
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
        """Forget a snapshot and its memory. Absent is fine."""

    def memory_path(self, snapshot_id: str) -> str:
        """Where the snapshot's memory is, once it is whole; half of it may be beside, under this name with more behind it."""

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        """Make the volume as the snapshot's disk was, if it isn't there; it is at least ``size_bytes`` large. Raises NotFound
        (``snapshotGone``), DriverFailed (``noSpace``)."""

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        """Make the volume as the snapshot's disk was. What stands there becomes layer ``layer_id`` of its own chain, which the
        caller has kept (``keep_present``), or goes. Nobody has the volume open. Repeated with the same ``layer_id``, it leaves
        alone what was written since. Raises as ``clone``, InvalidInput (``unsupported``), IllegalTransition for a volume with an
        unfinished layer."""

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
