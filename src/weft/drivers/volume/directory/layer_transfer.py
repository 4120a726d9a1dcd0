"""Layers and snapshots that come into the pool with a disk, or go with it; see the contract ``LayerTransfer``.

An arriving layer has an id of its own here: the same id may stand for other content in this pool, since each pool unites layers by
itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.contracts.driver.layers import MEMORY, CarriedDisk, KeptSnapshot
from weft.contracts.durable_file import keep_file
from weft.drivers.volume.directory.layer_changes import LayerChanges
from weft.drivers.volume.directory.layer_records import Chain, LayerRecords
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import check_own
from weft.drivers.volume.directory.stand_in import read_stand_in
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.identity import short_id

MOST_FILES = 4096
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class DirectoryLayerTransfer:
    def __init__(
        self, records: LayerRecords, changes: LayerChanges, work: Callable[[str], Path], locked: Locking
    ) -> None:
        self._records, self._changes, self._work, self._locked = records, changes, work, locked

    async def pack(
        self, volume_id: str, disk: str, workload: str, key: str, *, memory: bool
    ) -> tuple[CarriedDisk, dict[str, str]]:
        if not self._records.is_used():
            return CarriedDisk(), {}
        return await self._locked(lambda: self._pack(volume_id, disk, workload, key, memory))

    def _pack(
        self, volume_id: str, disk: str, workload: str, key: str, memory: bool
    ) -> tuple[CarriedDisk, dict[str, str]]:
        chain, files = self._records.read(volume_id), dict[str, str]()
        if chain.pending is not None:
            raise IllegalTransition(
                f"a snapshot of volume {volume_id} is being taken (layer {chain.pending.layer})",
                hint="try again in a moment",
            )

        def name(layer_id: str) -> str:
            there, path = short_id(f"{key}/{layer_id}"), self._records.layer(layer_id)
            if path.exists() and read_stand_in(path):
                raise IllegalTransition(
                    f"it still stands on the backup that it was restored from (volume {volume_id})",
                    reason="standsOnBackup",
                    hint="wait until it is copied: weft snapshot list",
                )
            files[there] = str(path)
            return there

        snapshots: list[KeptSnapshot] = []
        for kept in self._records.list_kept():
            if kept.workload != workload or not workload or disk not in kept.disks:
                continue
            own = kept.disks[disk]
            path = self._records.memory(kept.id)
            size = path.stat().st_size if memory and path.exists() else 0
            if size:
                files[f"{kept.id}{MEMORY}"] = str(path)
            disks = {disk: msgspec.structs.replace(own, layers=tuple(map(name, own.layers)))}
            snapshots.append(msgspec.structs.replace(kept, disks=disks, memory_bytes=size))
        return CarriedDisk(tuple(map(name, chain.layers)), tuple(snapshots), chain.replaced), files

    async def expect(self, volume_id: str, carried: CarriedDisk) -> None:
        names = carried.list_files()
        ids = [*(name.removesuffix(MEMORY) for name in names), *(kept.id for kept in carried.snapshots)]
        if len(names) > MOST_FILES or not all(map(_ID.fullmatch, ids)):
            raise InvalidInput(f"volume {volume_id}: what it stands on there can't be kept here")

        def expect() -> None:
            self._changes.held.write(volume_id, carried)
            self._changes.sweep()

        await self._locked(expect)

    async def begin(self, volume_id: str, name: str) -> str:
        await self._locked(lambda: self._check(volume_id, name))
        work = self._work(f"{name}.come")
        await asyncio.to_thread(work.unlink, missing_ok=True)
        return str(work)

    async def complete(self, volume_id: str, name: str) -> None:
        work = self._work(f"{name}.come")

        def complete() -> None:
            self._check(volume_id, name)
            if not name.endswith(MEMORY):
                check_own(work, f"layer {name} of volume {volume_id}")
            keep_file(work, self._find(name))

        await self._locked(complete)

    def _check(self, volume_id: str, name: str) -> None:
        held = self._changes.held.find(volume_id)
        if held is None or name not in held.list_files():
            raise InvalidInput(f"volume {volume_id}: file {name} is not expected here")

    def _find(self, name: str) -> Path:
        if name.endswith(MEMORY):
            return self._records.memory(name.removesuffix(MEMORY))
        return self._records.layer(name)

    def find_chain(self, volume_id: str) -> Chain:
        """The chain that the volume will stand on when it has come; with the records locked. Raises IllegalTransition while files
        are missing."""
        held = self._changes.held.find(volume_id)
        if held is None:
            return Chain()
        missing = [name for name in held.list_files() if not self._find(name).exists()]
        if missing:
            raise IllegalTransition(f"volume {volume_id}: these files of it have not arrived: {', '.join(missing)}")
        return Chain(held.layers, None, held.replaced)

    async def adopt(self, volume_id: str) -> None:
        def adopt() -> None:
            if self._changes.held.find(volume_id) is not None:
                self._records.write(volume_id, self.find_chain(volume_id))

        if self._records.is_used():
            await self._locked(adopt)

    async def settle(self, volume_id: str) -> None:
        if self._records.is_used():
            await self._locked(lambda: self._settle(volume_id))

    def _settle(self, volume_id: str) -> None:
        held = self._changes.held.find(volume_id)
        if held is None:
            return
        for snapshot in held.snapshots:
            before = self._records.find_kept(snapshot.id)
            disks = {**(before.disks if before is not None else {}), **snapshot.disks}
            self._records.keep(msgspec.structs.replace(snapshot, disks=disks))
        self._changes.held.forget(volume_id)
        self._changes.sweep()

    async def release(self, disk: str, workload: str, *, memory: bool) -> None:
        if self._records.is_used():
            await self._locked(lambda: self._release(disk, workload, memory))

    def _release(self, disk: str, workload: str, memory: bool) -> None:
        for kept in self._records.list_kept():
            if not workload or kept.workload != workload or disk not in kept.disks:
                continue
            rest = {name: one for name, one in kept.disks.items() if name != disk}
            if memory and rest:
                self._records.memory(kept.id).unlink(missing_ok=True)
            if rest:
                self._records.keep(msgspec.structs.replace(kept, disks=rest))
            else:
                self._changes.drop(kept.id)
        self._changes.sweep()
