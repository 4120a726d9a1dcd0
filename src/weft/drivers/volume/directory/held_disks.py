"""Disks that have come for volumes from other storage, ``<volume>.held``, until each is here for good. Called with the records
locked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weft.contracts.driver.layers import CarriedDisk
from weft.contracts.durable_file import sync_folder, write_durably
from weft.drivers.volume.directory.layer_records import HELD, LayerRecords, load_record


class HeldDisks:
    def __init__(self, records: LayerRecords) -> None:
        self._records = records

    def find(self, volume_id: str) -> CarriedDisk | None:
        return load_record(self._path(volume_id), CarriedDisk)

    def list(self) -> list[CarriedDisk]:
        paths = sorted(self._records.folder.glob(f"[!.]*{HELD}"))
        return [held for held in (load_record(path, CarriedDisk) for path in paths) if held is not None]

    def write(self, volume_id: str, held: CarriedDisk) -> None:
        write_durably(self._path(volume_id), msgspec.json.encode(held))

    def forget(self, volume_id: str) -> None:
        self._path(volume_id).unlink(missing_ok=True)
        sync_folder(self._records.folder)

    def drop(self, volume_id: str) -> None:
        """Forget it, and the memories that came with it; its layers go with the next sweep."""
        held = self.find(volume_id)
        if held is None:
            return
        for snapshot in held.snapshots:
            if self._records.find_kept(snapshot.id) is None:
                self._records.memory(snapshot.id).unlink(missing_ok=True)
        self.forget(volume_id)

    def _path(self, volume_id: str) -> Path:
        return self._records.folder / f"{self._records.volume(volume_id).stem}{HELD}"
