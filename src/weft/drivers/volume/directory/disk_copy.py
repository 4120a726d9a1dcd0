"""Copies of disks out of a pool in a folder, and into it; see the contract ``DiskCopies``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import msgspec

from weft.contracts.driver.layers import MOST_LAYERS, KeptDisk, KeptSnapshot, ServedDisk
from weft.contracts.durable_file import keep_file
from weft.drivers.volume.directory.layer_changes import LayerChanges
from weft.drivers.volume.directory.layer_records import LayerRecords, list_kept_layers
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import COPY_SECONDS, check_own, describe_chain, round_up, run_qemu_img
from weft.drivers.volume.directory.stand_in import write_stand_in
from weft.drivers.volume.disk_server import map_disk, serve_disk
from weft.objects.errors import InvalidInput, NotFound


class DirectoryDiskCopies:
    def __init__(
        self, records: LayerRecords, changes: LayerChanges, work: Callable[[str], Path], locked: Locking
    ) -> None:
        self._records, self._changes, self._work, self._locked = records, changes, work, locked

    @contextlib.asynccontextmanager
    async def read(
        self, snapshot_id: str, disk: str, *, base: str | None, base_format: str, since: str = ""
    ) -> AsyncIterator[ServedDisk]:
        below = [(base, base_format)] if base is not None else []
        while True:
            found = await self._locked(lambda: self._find(snapshot_id, disk, since))
            layers, above, size, former, former_name = found
            for path in layers:
                await asyncio.to_thread(check_own, Path(path), f"disk file {path}")
            name = describe_chain([*below, *((path, "qcow2") for path in layers)], locking=False)
            async with serve_disk(name, read_only=True) as socket:
                extents = await map_disk(name, above)
                if await self._locked(lambda: self._find(snapshot_id, disk, since)) != found:
                    continue  # a layer was absorbed meanwhile, so the map counted others
                yield ServedDisk(socket, size, extents, above < 0, former, former_name)
                return

    def _find(self, snapshot_id: str, disk: str, since: str) -> tuple[list[str], int, int, str, str]:
        """The files of the disk, bottom first, how many of them are above those of ``since``, or -1, the disk's size, and what
        ``since`` calls it. A volume that was made from a snapshot has another name than there, and stands on its layers."""
        kept, above, name, title = self._find_disk(snapshot_id, disk), -1, disk, ""
        earlier = self._records.find_kept(since) if since else None
        for other, former in earlier.disks.items() if earlier is not None else ():
            if former.layers and kept.layers[: len(former.layers)] == former.layers and (above < 0 or other == disk):
                above, name, title = len(kept.layers) - len(former.layers), other, former.name
        return [str(self._records.layer(layer)) for layer in kept.layers], above, kept.size_bytes, name, title

    def _find_disk(self, snapshot_id: str, disk: str) -> KeptDisk:
        kept = self._records.find_kept(snapshot_id)
        found = kept.disks.get(disk) if kept is not None else None
        if found is None:
            raise NotFound(
                f"snapshot {snapshot_id} with disk {disk} is not on {self._locked.where}", reason="snapshotGone"
            )
        return found

    @contextlib.asynccontextmanager
    async def write(self, layer_id: str, size_bytes: int, *, on: str = "", disk: str = "") -> AsyncIterator[str]:
        work, below = self._arriving(layer_id), await self._locked(lambda: self._find_below(on, disk, size_bytes))
        for path in below:
            await asyncio.to_thread(check_own, Path(path), f"disk file {path}")
        await asyncio.to_thread(work.unlink, missing_ok=True)
        await run_qemu_img("create", "-q", "-f", "qcow2", str(work), str(round_up(size_bytes)))
        # Without locks, since what is below may be merged meanwhile: through the file above, that reads the same.
        name = describe_chain([(path, "qcow2") for path in (*below, str(work))], locking=not below)
        async with serve_disk(name, read_only=False) as socket:
            yield socket

    def _find_below(self, on: str, disk: str, size_bytes: int) -> list[str]:
        if not on:
            return []
        former = self._find_disk(on, disk)
        if former.size_bytes > size_bytes:
            raise InvalidInput(
                f"disk {disk} has {size_bytes} bytes, and had {former.size_bytes} in snapshot {on}",
                reason="tooSmall",
                hint="send the whole disk",
            )
        return [str(self._records.layer(layer)) for layer in former.layers]

    async def stand_in(self, layer_id: str, server: str) -> None:
        await asyncio.to_thread(write_stand_in, self._arriving(layer_id), server)

    async def take_in(self, snapshot: KeptSnapshot, *, on: str = "") -> None:
        await self._locked(lambda: self._take_in(snapshot, on))

    def _take_in(self, snapshot: KeptSnapshot, on: str) -> None:
        if self._records.find_kept(snapshot.id) is not None:
            return
        disks = {name: self._put_on(name, disk, on) for name, disk in snapshot.disks.items()}
        for layer_id in list_kept_layers(snapshot):
            work, layer = self._arriving(layer_id), self._records.layer(layer_id)
            if work.exists():
                keep_file(work, layer)
            elif not layer.exists():
                raise NotFound(f"disk {layer_id} of snapshot {snapshot.id} has not come to {self._locked.where}")
        self._records.keep(msgspec.structs.replace(snapshot, disks=disks, came=True))

    def _put_on(self, name: str, disk: KeptDisk, on: str) -> KeptDisk:
        kept = self._records.find_kept(on) if on else None
        if on and kept is None:
            raise NotFound(f"snapshot {on} is not on {self._locked.where}", reason="snapshotGone")
        former = kept.disks.get(name) if kept is not None else None
        layers = (*(former.layers if former is not None else ()), *disk.layers)
        if len(layers) > MOST_LAYERS:
            raise InvalidInput(
                f"disk {name} of snapshot {on} has {len(layers) - 1} layers; the limit is {MOST_LAYERS}",
                reason="tooManyLayers",
                hint="delete earlier snapshots of it; it has fewer layers a while later",
            )
        return msgspec.structs.replace(disk, layers=layers)

    async def discard(self, layer_ids: Iterable[str]) -> None:
        for layer_id in layer_ids:
            await asyncio.to_thread(self._arriving(layer_id).unlink, missing_ok=True)

    async def list_mergeable(self) -> list[str]:
        if not self._records.is_used():
            return []
        return await self._locked(lambda: list(self._changes.find_mergeable()))

    async def merge(self, layer_id: str) -> None:
        """Write the content of the file above into the layer, which takes that file's name then. Until that is done, the disk reads
        the same through the file above."""

        def find() -> list[str]:
            return [str(self._records.layer(one)) for one in self._changes.find_mergeable().get(layer_id, ())]

        files = await self._locked(find)
        if not files:
            return
        for path in files:
            await asyncio.to_thread(check_own, Path(path), f"disk file {path}")
        await run_qemu_img(
            *("commit", "-q", "-d", describe_chain([(path, "qcow2") for path in files])), seconds=COPY_SECONDS
        )

        def unite() -> None:
            if find() == files:  # else it is needed by now, and both are as good as before
                self._changes.unite(layer_id, Path(files[-1]))

        await self._locked(unite)

    def _arriving(self, layer_id: str) -> Path:
        return self._work(f"{layer_id}.import")
