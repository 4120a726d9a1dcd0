"""A node's disks with layers: what their guests write is in files, which a snapshot freezes and a restore brings back.

A volume's file and a frozen one hold all that the disk has, not only what is above its layers: so they show what a guest would
read, and layers that are taken up by the file above change nothing. An overlay holds what was written to it until it is finished.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from tests.simulation.disks import MarkedVolumes, OnDisk
from weft.contracts.driver.layers import KeptSnapshot, Layer
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.runtime.fake.guest import FakeGuest
from weft.drivers.volume.fake.layers import FakeLayers


def read_writes(path: str | Path) -> list[int]:
    """What was written to a disk, in order."""
    return _read(Path(path)).writes


class FiledLayers(FakeLayers):
    """The fake layers, with the files that they name."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        Path(self._folder).mkdir(parents=True, exist_ok=True)

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        path = await super().begin_layer(volume_id, layer_id)
        if not Path(path).exists():
            _write(Path(path), _read(self._file(volume_id)), writes=[])
        return path

    async def finish_layer(self, volume_id: str, layer_id: str) -> Layer:
        layer = await super().finish_layer(volume_id, layer_id)
        overlay, frozen = Path(f"{layer.path}.next"), Path(layer.path)
        if overlay.exists():
            os.replace(self._file(volume_id), frozen)
            under = _read(frozen)
            _write(self._file(volume_id), under, writes=under.writes + _read(overlay).writes)
            overlay.unlink()
        return layer

    async def undo_layer(self, volume_id: str, layer_id: str) -> None:
        await super().undo_layer(volume_id, layer_id)
        if layer_id not in self._shelf.unfinished.values():
            Path(f"{self._describe(layer_id).path}.next").unlink(missing_ok=True)

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        facts = await super().clone(volume_id, snapshot_id, disk, size_bytes=size_bytes)
        if not self._file(volume_id).exists():
            self._file(volume_id).write_bytes(self._tip(snapshot_id, disk).read_bytes())
        return facts

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        before = self._shelf.replaced.get(volume_id)
        facts = await super().replace(volume_id, snapshot_id, disk, layer_id)
        if before != layer_id:
            os.replace(self._file(volume_id), self._describe(layer_id).path)
            self._file(volume_id).write_bytes(self._tip(snapshot_id, disk).read_bytes())
        return facts

    def find_writes(self, kept: KeptSnapshot) -> dict[str, list[int]]:
        """What each disk of a snapshot holds; of one that is only to be replaced yet, nothing."""
        paths = {disk: Path(self._describe(one.layers[-1]).path) for disk, one in kept.disks.items()}
        return {disk: read_writes(path) for disk, path in paths.items() if path.exists()}

    def _tip(self, snapshot_id: str, disk: str) -> Path:
        return Path(self._describe(self._shelf.kept[snapshot_id].disks[disk].layers[-1]).path)

    def _file(self, volume_id: str) -> Path:
        return Path(self._volumes[volume_id].path)


class LayeredVolumes(MarkedVolumes):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        folder = f"{self._host.state_dir}/volumes/layers"
        self.layers = FiledLayers(self.shelf.layers, self.shelf.volumes, folder, self._meet_layers, self._describe)

    async def _meet_layers(self, method: str, id_: str) -> None:
        await self._meet(method, id_)  # the one that troubles it, which is set later


def write(guest: FakeGuest, number: int) -> None:
    """The guest writes this to all its disks, at one instant."""
    for disk in guest.plan.disks:
        if not disk.read_only:
            path = Path(_overlays(guest).get(disk.serial, disk.path))
            path = path if path.exists() else Path(disk.path)
            on_disk = _read(path)
            _write(path, on_disk, writes=[*on_disk.writes, number])


def _read(path: Path) -> OnDisk:
    return msgspec.json.decode(path.read_bytes(), type=OnDisk)


def _write(path: Path, on_disk: OnDisk, *, writes: list[int]) -> None:
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(on_disk, writes=writes)))


def _overlays(guest: FakeGuest) -> dict[str, str]:
    """The files that it writes to since a snapshot, until they have their disks' names."""
    snapshot = getattr(guest, "snapshot", None)
    return snapshot.plan.overlays if snapshot is not None and snapshot.facts.switched else {}
