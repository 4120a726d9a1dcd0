"""Copies of disks out of a pool in a folder, and into it; see the contract ``DiskCopies``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, ServedDisk
from weft.contracts.durable_file import keep_file
from weft.drivers.volume.directory.layer_records import LayerRecords, list_kept_layers
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import check_own, describe_chain, round_up, run_qemu_img
from weft.drivers.volume.directory.stand_in import write_stand_in
from weft.drivers.volume.disk_server import map_disk, serve_disk
from weft.objects.errors import NotFound


class DirectoryDiskCopies:
    def __init__(self, records: LayerRecords, work: Callable[[str], Path], locked: Locking) -> None:
        self._records, self._work, self._locked = records, work, locked

    @contextlib.asynccontextmanager
    async def read(
        self, snapshot_id: str, disk: str, *, base: str | None, base_format: str, since: str = ""
    ) -> AsyncIterator[ServedDisk]:
        below = [(base, base_format)] if base is not None else []
        while True:
            found = await self._locked(lambda: self._find(snapshot_id, disk, since))
            layers, above, size = found
            for path in layers:
                await asyncio.to_thread(check_own, Path(path), f"disk file {path}")
            name = describe_chain([*below, *((path, "qcow2") for path in layers)], locking=False)
            async with serve_disk(name, read_only=True) as socket:
                extents = await map_disk(name, above)
                if await self._locked(lambda: self._find(snapshot_id, disk, since)) != found:
                    continue  # a layer was absorbed meanwhile, so the map counted others
                yield ServedDisk(socket, size, extents, above < 0)
                return

    def _find(self, snapshot_id: str, disk: str, since: str) -> tuple[list[str], int, int]:
        """The files of the disk, bottom first, how many of them are above those of ``since``, or -1, and the disk's size."""
        kept, above = self._find_disk(snapshot_id, disk), -1
        if since:
            with contextlib.suppress(NotFound):
                earlier = self._find_disk(since, disk).layers
                if earlier and kept.layers[: len(earlier)] == earlier:
                    above = len(kept.layers) - len(earlier)
        return [str(self._records.layer(layer)) for layer in kept.layers], above, kept.size_bytes

    def _find_disk(self, snapshot_id: str, disk: str) -> KeptDisk:
        kept = self._records.find_kept(snapshot_id)
        found = kept.disks.get(disk) if kept is not None else None
        if found is None:
            raise NotFound(
                f"snapshot {snapshot_id} with disk {disk} is not on {self._locked.where}", reason="snapshotGone"
            )
        return found

    @contextlib.asynccontextmanager
    async def write(self, layer_id: str, size_bytes: int) -> AsyncIterator[str]:
        work = self._arriving(layer_id)
        await asyncio.to_thread(work.unlink, missing_ok=True)
        await run_qemu_img("create", "-q", "-f", "qcow2", str(work), str(round_up(size_bytes)))
        async with serve_disk(describe_chain([(str(work), "qcow2")]), read_only=False) as socket:
            yield socket

    async def stand_in(self, layer_id: str, server: str) -> None:
        await asyncio.to_thread(write_stand_in, self._arriving(layer_id), server)

    async def take_in(self, snapshot: KeptSnapshot) -> None:
        await self._locked(lambda: self._take_in(snapshot))

    def _take_in(self, snapshot: KeptSnapshot) -> None:
        if self._records.find_kept(snapshot.id) is not None:
            return
        for layer_id in list_kept_layers(snapshot):
            work, layer = self._arriving(layer_id), self._records.layer(layer_id)
            if work.exists():
                keep_file(work, layer)
            elif not layer.exists():
                raise NotFound(f"disk {layer_id} of snapshot {snapshot.id} has not come to {self._locked.where}")
        self._records.keep(snapshot)

    async def discard(self, layer_ids: Iterable[str]) -> None:
        for layer_id in layer_ids:
            await asyncio.to_thread(self._arriving(layer_id).unlink, missing_ok=True)

    def _arriving(self, layer_id: str) -> Path:
        return self._work(f"{layer_id}.import")
