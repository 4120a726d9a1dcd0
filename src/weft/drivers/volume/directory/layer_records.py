"""Layers on which the volumes of a pool stand, and which snapshots keep: ``<pool>/volumes/layers``.

    <layer>.qcow2      a frozen file; while it is being frozen, another name of the volume's own file
    <layer>.next       the overlay that will be the volume's file
    <volume>.chain     what the volume stands on, as Chain; it counts while the volume's file is there
    <snapshot>.kept    what a snapshot keeps, as KeptSnapshot
    <snapshot>.memory  its memory
    <volume>.held      what has come for a volume from other storage, as CarriedDisk, until it is there for good

A volume gets another file and another chain in one step: its record says what the chain will be (``Pending``), and that is true
once the volume's file is another one than the frozen layer. Neighbours in a chain that are the same file are one layer, the upper.
Blocks; every method is called with the records ``locked``, which excludes other nodes too, and raises OSError, or DriverFailed for
a record that can't be read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from weft.contracts.driver.layers import KeptSnapshot
from weft.contracts.durable_file import write_durably
from weft.objects.errors import DriverFailed, InvalidInput

LAYER, OVERLAY, CHAIN, KEPT, MEMORY, HELD = ".qcow2", ".next", ".chain", ".kept", ".memory", ".held"
_LOCK = ".lock"
_T = TypeVar("_T")
File = tuple[int, int]  # device and inode


class Pending(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pending change: once the volume's file is another one than ``layer``, it stands on ``next``. Until then it is cut off, and
    void, unless an overlay ``waits``, which a guest may be writing to."""

    layer: str
    next: tuple[str, ...]
    waits: bool = False
    replaced: str = ""


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bottom first. ``replaced``: the layer that the volume's content became when it was replaced last."""

    layers: tuple[str, ...] = ()
    pending: Pending | None = None
    replaced: str = ""


class LayerRecords:
    """Layer records of the volumes in folder ``volumes``."""

    def __init__(self, volumes: Path) -> None:
        self.volumes = volumes
        self.folder = volumes / "layers"

    def is_used(self) -> bool:
        """Whether there may be any; needs no lock."""
        return self.folder.exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        for folder in (self.volumes, self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        with (self.folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for folder in (self.volumes, self.folder):
                os.utime(folder)  # a network's file system looks at the folder anew: others may have changed it
            yield

    def layer(self, layer_id: str) -> Path:
        return self.folder / f"{_check(layer_id)}{LAYER}"

    def overlay(self, layer_id: str) -> Path:
        return self.folder / f"{_check(layer_id)}{OVERLAY}"

    def memory(self, snapshot_id: str) -> Path:
        return self.folder / f"{_check(snapshot_id)}{MEMORY}"

    def volume(self, volume_id: str) -> Path:
        return self.volumes / f"{_check(volume_id)}.qcow2"

    def _is_raw(self, volume_id: str) -> bool:
        return self.volume(volume_id).with_suffix(".raw").exists()

    def read(self, volume_id: str) -> Chain:
        """The chain that the volume stands on with its present file; nothing for one that isn't there."""
        own = None if self._is_raw(volume_id) else find_file(self.volume(volume_id))
        chain = load_record(self._chain(volume_id), Chain) if own is not None else None
        if chain is None or own is None:
            return Chain()
        pending = chain.pending
        if pending is not None and find_file(self.layer(pending.layer)) != own:
            chain = Chain(pending.next, None, pending.replaced or chain.replaced)
        elif pending is not None and not pending.waits:
            chain = Chain(chain.layers, None, chain.replaced)
        elif pending is not None:
            united = msgspec.structs.replace(pending, next=self._unite(pending.next, None))
            chain = msgspec.structs.replace(chain, pending=united)
        return msgspec.structs.replace(chain, layers=self._unite(chain.layers, own))

    def write(self, volume_id: str, chain: Chain) -> None:
        write_durably(self._chain(volume_id), msgspec.json.encode(chain))

    def forget(self, volume_id: str) -> None:
        """Drop what a record says of a volume that was removed, or stands on nothing."""
        self._chain(volume_id).unlink(missing_ok=True)

    def list_volumes(self) -> list[str]:
        """The volumes that stand on layers, or have stood on some."""
        ids = (path.name.removesuffix(CHAIN) for path in self.folder.glob(f"[!.]*{CHAIN}"))
        return sorted(id_ for id_ in ids if self.volume(id_).exists() and not self._is_raw(id_))

    def keep(self, snapshot: KeptSnapshot) -> None:
        write_durably(self._kept(snapshot.id), msgspec.json.encode(snapshot))

    def find_kept(self, snapshot_id: str) -> KeptSnapshot | None:
        found = load_record(self._kept(snapshot_id), KeptSnapshot)
        if found is None:
            return None
        disks = {
            name: msgspec.structs.replace(disk, layers=self._unite(disk.layers, None))
            for name, disk in found.disks.items()
        }
        return msgspec.structs.replace(found, disks=disks)

    def list_kept(self) -> list[KeptSnapshot]:
        ids = sorted(path.name.removesuffix(KEPT) for path in self.folder.glob(f"[!.]*{KEPT}"))
        return [kept for kept in map(self.find_kept, ids) if kept is not None]

    def drop(self, snapshot_id: str) -> None:
        self._kept(snapshot_id).unlink(missing_ok=True)

    def settle(self) -> None:
        """Write what is read, where that differs: what was cut off has been done, or is void."""
        for volume_id in self.list_volumes():
            chain = self.read(volume_id)
            if chain != load_record(self._chain(volume_id), Chain):
                self.write(volume_id, chain)
        for kept in self.list_kept():
            if kept != load_record(self._kept(kept.id), KeptSnapshot):
                self.keep(kept)

    def _unite(self, layers: tuple[str, ...], own: File | None) -> tuple[str, ...]:
        files = [*(find_file(self.layer(layer)) for layer in layers), own]
        pairs = zip(layers, files, files[1:], strict=False)
        return tuple(layer for layer, here, above in pairs if here is None or here != above)

    def _chain(self, volume_id: str) -> Path:
        return self.folder / f"{_check(volume_id)}{CHAIN}"

    def _kept(self, snapshot_id: str) -> Path:
        return self.folder / f"{_check(snapshot_id)}{KEPT}"


def list_kept_layers(kept: KeptSnapshot) -> Iterable[str]:
    return (layer for disk in kept.disks.values() for layer in disk.layers)


def assign_layers(snapshots: Iterable[KeptSnapshot]) -> dict[str, list[str]]:
    """The layers that each snapshot counts, by its id: every layer once, with the lowest snapshot that keeps it. What volumes stand
    on counts too, since the guest writes as much again to the file above."""
    counted: dict[str, list[str]] = {}
    seen: set[str] = set()
    for kept in sorted(snapshots, key=lambda one: (len(set(list_kept_layers(one))), one.id)):
        own = set(list_kept_layers(kept)) - seen
        counted[kept.id] = sorted(own)
        seen |= own
    return counted


def load_record(path: Path, shape: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as problem:
        raise DriverFailed(
            f"{path} can't be read: {problem}",
            hint="restore it from a backup; until then no layer of this pool is removed",
            details={"step": "snapshot"},
        ) from problem


def is_half_written(path: Path) -> bool:
    """Whether a record's writer was killed."""
    return path.name.startswith(".") and any(f"{suffix}." in path.name for suffix in (CHAIN, KEPT, HELD))


def find_file(path: Path) -> File | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check(id_: str) -> str:
    if not id_ or id_.startswith(".") or "/" in id_:
        raise InvalidInput(f"{id_!r} is not an id of a volume, a layer or a snapshot")
    return id_
