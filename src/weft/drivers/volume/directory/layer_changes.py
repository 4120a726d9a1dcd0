"""Changes of what volumes and snapshots stand on, each whole or not at all, whatever cuts it off.

Called with the records locked; blocks. What nothing refers to any more goes with ``sweep``, also what an earlier change left.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import msgspec

from weft.contracts.durable_file import keep_file, sync_folder
from weft.drivers.volume.directory.held_disks import HeldDisks
from weft.drivers.volume.directory.layer_records import (
    CHAIN,
    LAYER,
    OVERLAY,
    Chain,
    File,
    LayerRecords,
    Pending,
    find_file,
    is_half_written,
    list_kept_layers,
)
from weft.drivers.volume.directory.stand_in import read_stand_in
from weft.objects.errors import DriverFailed

_WORK = ".above"


class LayerChanges:
    def __init__(self, records: LayerRecords) -> None:
        self._records, self.held = records, HeldDisks(records)

    def freeze(self, volume_id: str, layer_id: str) -> None:
        """Give the volume's file the layer's name too. Raises DriverFailed if another file has it."""
        volume, layer = self._records.volume(volume_id), self._records.layer(layer_id)
        there = find_file(layer)
        if there == find_file(volume):
            return
        if there is not None:
            if layer.name in self._list_used():
                raise DriverFailed(
                    f"layer {layer_id} is another file than volume {volume_id}", details={"step": "snapshot"}
                )
            layer.unlink()
        os.link(volume, layer)
        sync_folder(self._records.folder)

    def add(self, work: Path, volume_id: str, chain: Chain) -> None:
        """Make ``work`` the file of a volume that isn't there; one that is stays as it is, and ``work`` goes."""
        volume = self._records.volume(volume_id)
        if volume.exists() or volume.with_suffix(".raw").exists():
            work.unlink()
            return
        if chain == Chain():
            self._records.forget(volume_id)
            sync_folder(self._records.folder)  # a record that a power cut brings back would count for this file
        else:
            self._records.write(volume_id, chain)
        keep_file(work, volume)

    def switch(self, work: Path, volume_id: str, pending: Pending) -> None:
        """Make ``work`` the volume's file on the pending chain; what was its file becomes the layer, which goes if nothing keeps
        it."""
        self.freeze(volume_id, pending.layer)
        self._records.write(volume_id, msgspec.structs.replace(self._records.read(volume_id), pending=pending))
        self.name(work, volume_id)

    def displace(self, work: Path, volume_id: str, chain: Chain) -> None:
        """Make ``work`` the file of a volume whose raw file goes: that one counts as long as it is there."""
        volume = self._records.volume(volume_id)
        self._records.write(volume_id, chain)
        keep_file(work, volume)
        volume.with_suffix(".raw").unlink(missing_ok=True)
        sync_folder(volume.parent)
        self.sweep()

    def name(self, work: Path, volume_id: str) -> None:
        """Make ``work`` the volume's file, and what is pending its chain."""
        keep_file(work, self._records.volume(volume_id))
        sync_folder(work.parent)
        self.sweep()

    def share(self, volume_id: str, other_id: str) -> None:
        """Give the volume's file the name of another volume too, if that one isn't there."""
        other = self._records.volume(other_id)
        if not other.exists():
            self._records.write(other_id, self._records.read(volume_id))
            os.link(self._records.volume(volume_id), other)
        sync_folder(other.parent)

    def remove(self, volume_id: str) -> None:
        volume = self._records.volume(volume_id)
        for path in (volume, volume.with_suffix(".raw")):
            path.unlink(missing_ok=True)
        sync_folder(self._records.volumes)
        self.held.drop(volume_id)
        self.sweep()

    def drop(self, snapshot_id: str) -> None:
        memory = self._records.memory(snapshot_id).name
        for path in self._records.folder.glob(f"*{memory}*"):
            if path.name.lstrip(".").startswith(memory):
                path.unlink(missing_ok=True)
        sync_folder(self._records.folder)  # first, since a snapshot that is still listed is dropped again
        self._records.drop(snapshot_id)
        self.sweep()

    def find_above(self, volume_id: str, layer_id: str) -> Path | None:
        """The file above the layer in the volume's chain; None if it isn't in there."""
        layers = self._records.read(volume_id).layers
        if layer_id not in layers:
            return None
        above = layers[layers.index(layer_id) + 1 :]
        return self._records.layer(above[0]) if above else self._records.volume(volume_id)

    def list_unneeded(self, volume_id: str) -> list[str]:
        """See Layers. What takes a layer's content has to be above it wherever it is, and nothing else may have both open."""
        chain = self._records.read(volume_id)
        if chain.pending is not None or self.held.find(volume_id) is not None:
            return []
        kept = [disk.layers for snapshot in self._records.list_kept() for disk in snapshot.disks.values()]
        others: set[str] = set()
        for other in map(self._records.read, (id_ for id_ in self._records.list_volumes() if id_ != volume_id)):
            others.update(other.layers, other.pending.next if other.pending is not None else ())
        pairs = zip(chain.layers, [*chain.layers[1:], None], strict=False)
        return [
            layer
            for layer, above in pairs
            if layer not in others
            and all(above is not None and _follows(layer, above, layers) for layers in kept if layer in layers)
        ]

    def find_mergeable(self) -> dict[str, tuple[str, ...]]:
        """See DiskCopies: by the layer, what its chain has up to the file above it."""
        kept = self._records.list_kept()
        everywhere = [disk.layers for snapshot in kept for disk in snapshot.disks.values()]
        taken: set[str] = {name for held in self.held.list() for name in held.list_files()}
        for chain in map(self._records.read, self._records.list_volumes()):
            taken.update(chain.layers, chain.pending.next if chain.pending is not None else ())
        found: dict[str, tuple[str, ...]] = {}
        for layers in (disk.layers for snapshot in kept if snapshot.came for disk in snapshot.disks.values()):
            for at, (layer, above) in enumerate(itertools.pairwise(layers)):
                if layer in taken or any(layer in one and not _follows(layer, above, one) for one in everywhere):
                    continue
                if all(self._is_disk(one) for one in layers[: at + 2]):
                    found.setdefault(layer, layers[: at + 2])
        return found

    def _is_disk(self, layer_id: str) -> bool:
        """Whether it is there, and stands for no other."""
        path = self._records.layer(layer_id)
        return path.exists() and not read_stand_in(path)

    def unite(self, layer_id: str, above: Path) -> None:
        """The layer's file holds what the file above it holds: it takes that name too, and the layer is gone."""
        work = self._records.folder / f".{layer_id}{_WORK}"
        work.unlink(missing_ok=True)
        os.link(self._records.layer(layer_id), work)
        keep_file(work, above)
        self.sweep()

    def forget_layer(self, volume_id: str, layer_id: str) -> None:
        """Take the layer out of each chain in which the same file is above it as in the volume's."""
        above = self.find_above(volume_id, layer_id)
        file = find_file(above) if above is not None else None
        if file is None:
            return
        for kept in self._records.list_kept():
            disks = {
                name: msgspec.structs.replace(disk, layers=_drop(disk.layers, layer_id))
                if self._is_below(layer_id, disk.layers, file, None)
                else disk
                for name, disk in kept.disks.items()
            }
            if disks != kept.disks:
                self._records.keep(msgspec.structs.replace(kept, disks=disks))
        for id_ in sorted(
            self._records.list_volumes(), key=volume_id.__eq__
        ):  # its own last, so that it may be repeated
            chain, own = self._records.read(id_), find_file(self._records.volume(id_))
            if self._is_below(layer_id, chain.layers, file, own):
                pending = chain.pending
                if pending is not None:
                    pending = msgspec.structs.replace(pending, next=_drop(pending.next, layer_id))
                changed = msgspec.structs.replace(chain, layers=_drop(chain.layers, layer_id), pending=pending)
                self._records.write(id_, changed)
        self.sweep()

    def sweep(self) -> None:
        """Remove what nothing refers to, and what was left half-written; nothing where a record can't be read."""
        self._records.settle()
        used = self._list_used() | {f"{volume_id}{CHAIN}" for volume_id in self._records.list_volumes()}
        sync_folder(self._records.folder)  # the records that refer to a file go before it
        for path in list(self._records.folder.iterdir()):
            half = path.name.startswith(".") and (path.suffix == _WORK or is_half_written(path))
            if half or (path.suffix in (LAYER, OVERLAY, CHAIN) and path.name not in used):
                path.unlink(missing_ok=True)
        sync_folder(self._records.folder)

    def _list_used(self) -> set[str]:
        names: set[str] = set()
        for chain in map(self._records.read, self._records.list_volumes()):
            names.update(f"{layer}{LAYER}" for layer in chain.layers)
            if chain.pending is not None:
                names.update((f"{chain.pending.layer}{LAYER}", f"{chain.pending.layer}{OVERLAY}"))
                names.update(f"{layer}{LAYER}" for layer in chain.pending.next)
        names.update(f"{name}{LAYER}" for held in self.held.list() for name in held.list_files())
        return names | {f"{layer}{LAYER}" for kept in self._records.list_kept() for layer in list_kept_layers(kept)}

    def _is_below(self, layer_id: str, layers: tuple[str, ...], above: File, own: File | None) -> bool:
        if layer_id not in layers:
            return False
        following = layers[layers.index(layer_id) + 1 :]
        return (find_file(self._records.layer(following[0])) if following else own) == above


def _follows(layer: str, above: str, layers: tuple[str, ...]) -> bool:
    return layers[layers.index(layer) + 1 :][:1] == (above,)


def _drop(layers: tuple[str, ...], layer_id: str) -> tuple[str, ...]:
    return tuple(layer for layer in layers if layer != layer_id)
