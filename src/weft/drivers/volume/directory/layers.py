"""Layers of qcow2 volumes in a folder: overlays without the name of a backing file, and records of what is under them.

Called by the agent through the contract ``Layers``. Files change under the records' lock, in a thread; qemu-img runs outside of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from weft.contracts.driver.layers import MOST_LAYERS, KeptDisk, KeptSnapshot, Layer
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.directory.layer_changes import LayerChanges
from weft.drivers.volume.directory.layer_records import (
    Chain,
    LayerRecords,
    Pending,
    assign_layers,
    list_kept_layers,
)
from weft.drivers.volume.directory.locking import Locking
from weft.drivers.volume.directory.qemu_img import COPY_SECONDS, check_own, describe_chain, round_up, run_qemu_img
from weft.drivers.volume.directory.stand_in import read_stand_in
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, NotFound

_SECTOR = 512


class DirectoryLayers:
    """Layers of the volumes that ``inspect`` finds. ``work`` gives the path to make a file at before it gets its name."""

    def __init__(
        self,
        records: LayerRecords,
        changes: LayerChanges,
        inspect: Callable[[str], VolumeFacts | None],
        work: Callable[[str], Path],
        locked: Locking,
    ) -> None:
        self._records, self._inspect, self._work, self._locked = records, inspect, work, locked
        self._changes = changes
        self._making = asyncio.Lock()

    async def list_layers(self, volume_id: str) -> list[Layer]:
        if not self._records.is_used():
            return []
        return await self._locked(
            lambda: [self._describe(layer, volume_id) for layer in self._records.read(volume_id).layers]
        )

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        path, size = await self._locked(lambda: self._check_begin(volume_id, layer_id))
        if path is not None:
            return str(path)
        async with self._overlay(layer_id, size) as work:
            return str(await self._locked(lambda: self._begin(volume_id, layer_id, work)))

    def _check_begin(self, volume_id: str, layer_id: str) -> tuple[Path | None, int]:
        """The overlay, if there is one, and the size of one to make."""
        facts, chain = self._find(volume_id), self._records.read(volume_id)
        self._refuse_raw(facts)
        refuse_encrypted(facts)
        if layer_id in chain.layers:
            return Path(facts.path), 0
        if chain.pending is not None:
            if chain.pending.layer == layer_id:
                return self._records.overlay(layer_id), 0
            raise self._unfinished(volume_id, chain.pending)
        if len(chain.layers) >= MOST_LAYERS:
            raise InvalidInput(
                "the disk stands on as many snapshots as one can",
                reason="tooManyLayers",
                hint="delete snapshots of it that are not needed any more; it has fewer layers a while later",
            )
        return None, facts.size_bytes

    def _begin(self, volume_id: str, layer_id: str, work: Path) -> Path:
        path, _ = self._check_begin(volume_id, layer_id)
        if path is not None:  # another call was faster
            return path
        chain, overlay = self._records.read(volume_id), self._records.overlay(layer_id)
        self._changes.freeze(volume_id, layer_id)
        work.replace(overlay)
        pending = Pending(layer_id, (*chain.layers, layer_id), waits=True)
        self._records.write(volume_id, msgspec.structs.replace(chain, pending=pending))
        return overlay

    async def finish_layer(self, volume_id: str, layer_id: str) -> Layer:
        return await self._locked(lambda: self._finish(volume_id, layer_id))

    def _finish(self, volume_id: str, layer_id: str) -> Layer:
        chain = self._records.read(volume_id)
        if chain.pending is not None and chain.pending.layer == layer_id:
            self._changes.name(self._records.overlay(layer_id), volume_id)
        elif layer_id not in chain.layers:
            raise NotFound(f"layer {layer_id} of volume {volume_id} was not begun on {self._locked.where}")
        return self._describe(layer_id, volume_id)

    async def undo_layer(self, volume_id: str, layer_id: str) -> None:
        await self._locked(lambda: self._undo(volume_id, layer_id))

    def _undo(self, volume_id: str, layer_id: str) -> None:
        chain = self._records.read(volume_id)
        if chain.pending is not None and chain.pending.layer == layer_id:
            self._records.write(volume_id, msgspec.structs.replace(chain, pending=None))
        self._changes.sweep()

    async def find_unfinished(self, volume_id: str) -> str:
        if not self._records.is_used():
            return ""
        pending = await self._locked(lambda: self._records.read(volume_id).pending)
        return pending.layer if pending is not None else ""

    async def keep(self, snapshot: KeptSnapshot) -> None:
        await self._locked(lambda: self._keep(snapshot))

    def _keep(self, snapshot: KeptSnapshot) -> None:
        for layer_id in list_kept_layers(snapshot):
            if not self._records.layer(layer_id).exists():
                raise NotFound(f"layer {layer_id} of snapshot {snapshot.id} is not on {self._locked.where}")
        self._records.keep(snapshot)

    async def list_kept(self) -> list[KeptSnapshot]:
        return await self._locked(self._list_kept) if self._records.is_used() else []

    def _list_kept(self) -> list[KeptSnapshot]:
        snapshots, found = self._records.list_kept(), []
        counted = assign_layers(snapshots)
        for kept in snapshots:
            memory = _inspect_file(self._records.memory(kept.id))
            used = sum(_inspect_file(self._records.layer(layer))[1] for layer in counted[kept.id])
            found.append(msgspec.structs.replace(kept, memory_bytes=memory[0], used_bytes=used + memory[1]))
        return found

    async def drop(self, snapshot_id: str) -> None:
        if self._records.is_used():
            await self._locked(lambda: self._changes.drop(snapshot_id))

    def memory_path(self, snapshot_id: str) -> str:
        return str(self._records.memory(snapshot_id))

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        kept = await self._locked(lambda: self._find_kept(snapshot_id, disk))
        there = self._inspect(volume_id)
        if there is not None:
            return there
        async with self._overlay(volume_id, max(kept.size_bytes, size_bytes)) as work:

            def add() -> VolumeFacts:
                kept = self._find_kept(snapshot_id, disk)
                self._changes.add(work, volume_id, Chain(kept.layers))
                return self._find(volume_id)

            return await self._locked(add)

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        if await self._locked(lambda: self._is_replaced(volume_id, layer_id)):
            return self._find(volume_id)
        kept = await self._locked(lambda: self._find_kept(snapshot_id, disk))
        async with self._overlay(layer_id, kept.size_bytes) as work:

            def switch() -> VolumeFacts:
                kept = self._find_kept(snapshot_id, disk)
                if self._find(volume_id).format == "raw":
                    self._changes.displace(work, volume_id, Chain(kept.layers, replaced=layer_id))
                elif not self._is_replaced(volume_id, layer_id):
                    self._changes.switch(work, volume_id, Pending(layer_id, kept.layers, replaced=layer_id))
                return self._find(volume_id)

            return await self._locked(switch)

    def _is_replaced(self, volume_id: str, layer_id: str) -> bool:
        """Raises IllegalTransition for a volume that can't be replaced now."""
        return self._find(volume_id).format != "raw" and self._check_present(volume_id).replaced == layer_id

    def _check_present(self, volume_id: str) -> Chain:
        self._refuse_raw(self._find(volume_id))
        chain = self._records.read(volume_id)
        if chain.pending is not None:
            raise self._unfinished(volume_id, chain.pending)
        return chain

    async def keep_present(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> None:
        def keep() -> None:
            if self._records.find_kept(snapshot.id) is not None:
                return
            for volume_id, layer_id in layers.items():
                self._check_present(volume_id)
                self._changes.freeze(volume_id, layer_id)
            self._keep(snapshot)

        await self._locked(keep)

    async def list_unneeded(self, volume_id: str) -> list[str]:
        return await self._locked(lambda: self._changes.list_unneeded(volume_id)) if self._records.is_used() else []

    async def forget_layer(self, volume_id: str, layer_id: str) -> None:
        await self._locked(lambda: self._changes.forget_layer(volume_id, layer_id))

    async def absorb_layer(self, volume_id: str, layer_id: str, *, base: str | None, base_format: str) -> None:
        """Write the content of the file above into the layer: read through the file above, the disk is the same all the while. Then
        the layer takes that file's name."""

        def find_above() -> tuple[Path | None, list[tuple[str, str]]]:
            chain = self._records.read(volume_id)
            if layer_id not in self._changes.list_unneeded(volume_id):
                return None, []
            below = [str(self._records.layer(layer)) for layer in chain.layers[: chain.layers.index(layer_id) + 1]]
            return self._changes.find_above(volume_id, layer_id), [(path, "qcow2") for path in below]

        above, below = await self._locked(find_above)
        if above is None:
            return
        files = [*below, (str(above), "qcow2")]
        if base is not None:
            files.insert(0, (base, base_format))
        for path, format in files:
            if format == "qcow2":
                check_own(Path(path), f"disk file {path}")
        await run_qemu_img("commit", "-q", "-d", describe_chain(files), seconds=COPY_SECONDS)

        def unite() -> None:
            if find_above() == (above, below):  # else it is needed by now, and both are as good as before
                self._changes.unite(layer_id, above)

        await self._locked(unite)

    @contextlib.asynccontextmanager
    async def _overlay(self, id_: str, size_bytes: int) -> AsyncIterator[Path]:
        """An empty overlay, which goes unless it gets a name."""
        work = self._work(f"{id_}.overlay")
        async with self._making:
            await asyncio.to_thread(work.unlink, missing_ok=True)
            try:
                await run_qemu_img("create", "-q", "-f", "qcow2", str(work), str(round_up(size_bytes)))
                yield work
            finally:
                await asyncio.to_thread(work.unlink, missing_ok=True)

    def _find(self, volume_id: str) -> VolumeFacts:
        facts = self._inspect(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on {self._locked.where}")
        return facts

    def _find_kept(self, snapshot_id: str, disk: str) -> KeptDisk:
        kept = self._records.find_kept(snapshot_id)
        found = kept.disks.get(disk) if kept is not None else None
        if found is None:
            raise NotFound(
                f"snapshot {snapshot_id} with disk {disk} is not on {self._locked.where}",
                reason="snapshotGone",
                hint="restore another snapshot",
            )
        return found

    def _refuse_raw(self, facts: VolumeFacts) -> None:
        if facts.format == "raw":
            raise InvalidInput(
                f"volume {facts.id} has a file system that containers mount; it can't be part of a snapshot",
                reason="unsupported",
                hint="detach it first, or copy its files to a volume that no container has used",
            )

    def _describe(self, layer_id: str, volume_id: str) -> Layer:
        path = self._records.layer(layer_id)
        try:
            used = path.stat().st_blocks * _SECTOR
        except FileNotFoundError:
            raise DriverFailed(
                f"volume {volume_id} stands on {path}, which is missing",
                hint="restore the file, or the volume from a backup",
                details={"step": "disk"},
            ) from None
        server = read_stand_in(path)
        return Layer(layer_id, str(path), "nbd" if server else "qcow2", used, server)

    def _unfinished(self, volume_id: str, pending: Pending) -> IllegalTransition:
        return IllegalTransition(
            f"a snapshot of volume {volume_id} is being taken (layer {pending.layer})", hint="try again in a moment"
        )


def _inspect_file(path: Path) -> tuple[int, int]:
    """Its size, and the space that it takes up."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_blocks * _SECTOR


def refuse_encrypted(facts: VolumeFacts) -> None:
    """Raises InvalidInput (``unsupported``): what is written above a layer would be plain."""
    if facts.encrypted:
        raise InvalidInput(
            f"volume {facts.id} is encrypted, and snapshots of encrypted volumes can't be taken",
            reason="unsupported",
            hint="copy its data inside a VM",
        )
