"""Changes of what volumes and snapshots of a Ceph pool stand on. What is cut off is found by its name, and goes on when repeated.

Called with ``changing`` held: records are read, then written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from weft.contracts.driver.layers import KeptSnapshot
from weft.drivers.volume.rbd.images import Images, is_disk_of, name_disk
from weft.drivers.volume.rbd.names import Names, check_id
from weft.drivers.volume.rbd.records import (
    Chain,
    Records,
    RecordStore,
    StoredDisk,
    StoredSnapshot,
    name_image,
    name_layer,
)
from weft.objects.errors import NotFound


class LayerChanges:
    def __init__(self, records: RecordStore, images: Images, names: Names, where: str) -> None:
        self._records, self._images, self._names, self._where = records, images, names, where
        self.changing = asyncio.Lock()

    async def keep(self, snapshot: KeptSnapshot, records: Records, own: Mapping[str, str]) -> None:
        """``own``: layers, ``IMAGE@LAYER`` by id, that no record has yet. Raises NotFound."""
        known = {name_layer(layer): layer for layer in records.list_kept_layers()}
        for image, chain in records.chains.items():
            known.update((name_layer(layer), layer) for layer in chain.layers)
            if chain.begun:
                known[chain.begun] = f"{image}@{chain.begun}"
        known.update(own)
        disks = {}
        for name, disk in snapshot.disks.items():
            for layer in disk.layers:
                if layer not in known:
                    raise NotFound(f"layer {layer} of snapshot {snapshot.id} is not in {self._where}")
            disks[name] = StoredDisk(tuple(known[layer] for layer in disk.layers), disk.size_bytes, disk.name)
        stored = StoredSnapshot(
            *(snapshot.uid, disks, snapshot.workload, snapshot.taken_at),
            source=snapshot.source,
            consistency=snapshot.consistency,
            final=snapshot.final,
            came=snapshot.came,
        )
        await self._records.keep(check_id(snapshot.id), stored)

    def find_disk(self, records: Records, snapshot_id: str, disk: str) -> StoredDisk:
        """Raises NotFound (``snapshotGone``)."""
        kept = records.kept.get(snapshot_id)
        found = kept.disks.get(disk) if kept is not None else None
        if found is None:
            raise NotFound(
                f"snapshot {snapshot_id} with disk {disk} is not in {self._where}",
                reason="snapshotGone",
                hint="restore another snapshot",
            )
        return found

    async def drop_unneeded(self, layers: Iterable[str], records: Records, volumes: set[str]) -> None:
        """Those of ``layers`` that nothing in ``records`` needs, and images of no volume of which nothing is needed."""
        unneeded = set(layers) - records.list_kept_layers()
        for image in {name_image(layer) for layer in unneeded} - volumes - find_needed(records):
            await self._drop_points(image, records)
        for volume in volumes & records.chains.keys():
            free = records.list_unneeded(volume, volumes)
            unneeded -= {layer for layer in records.chains[volume].layers if layer not in free}
        for layer in sorted(unneeded):
            await self.drop_layer(layer, records)

    async def unite(self, layer: str, records: Records) -> None:
        """Drop a layer that only stands below others. Its image goes with its last one."""
        image = name_image(layer)
        others = {one for one in records.list_kept_layers() if name_image(one) == image} - {layer}
        if others or image in (await self._names.read()).values():
            await self._images.drop_snapshot(layer)
        else:
            await self._drop_points(image, records)
        await self._forget(layer, await self._records.read())  # another node may have dropped a snapshot meanwhile

    async def _drop_points(self, image: str, records: Records) -> None:
        """All of an image that no volume has, and nothing needs."""
        await self._images.drop(image)
        await self._records.write_chain(image, Chain())
        for one in records.claims:
            if one.image == image:
                await self._records.drop_claim(one)

    async def drop_layer(self, layer: str, records: Records) -> None:
        await self._images.drop_snapshot(layer)
        await self._forget(layer, records)

    async def _forget(self, layer: str, records: Records) -> None:
        for id_, kept in records.kept.items():
            if layer in kept.list_layers():
                disks = {name: replace(disk, layers=_drop(disk.layers, layer)) for name, disk in kept.disks.items()}
                await self._records.keep(id_, replace(kept, disks=disks))
                records.kept[id_] = replace(kept, disks=disks)
        for image, chain in records.chains.items():
            if layer in chain.layers:
                records.chains[image] = replace(chain, layers=_drop(chain.layers, layer))
                await self._records.write_chain(image, records.chains[image])

    async def release(self, volume_id: str) -> None:
        """Take the volume's names. Images that no volume has any more go, but for those that snapshots need."""
        for id_, image in await self._names.list():
            if id_ == volume_id:
                await self.release_image(volume_id, image)
        records, named = await self._records.read(), (await self._names.read()).values()
        begun = [one for one in records.chains if is_disk_of(one, volume_id)]
        for image in {name_disk(volume_id), *begun} - {*named, *find_needed(records)}:
            await self._images.drop(image)  # its making was cut off, or its removal
            await self._records.write_chain(image, Chain())

    async def release_image(self, volume_id: str, image: str) -> None:
        """Its data before its name, by which it is found when this is cut off."""
        if not await self._is_shared(volume_id, image):
            await self._drop_image(image)
        await self._names.take(volume_id, image)
        # Of two nodes that take the last two names at once, at least one sees no other now.
        if not await self._is_shared(volume_id, image):
            await self._drop_image(image)

    async def _is_shared(self, volume_id: str, image: str) -> bool:
        return any(one == image and id_ != volume_id for id_, one in await self._names.list())

    async def _drop_image(self, image: str) -> None:
        """All of it that no snapshot needs."""
        records = await self._records.read()
        needed = records.list_kept_layers()
        if image not in find_needed(records):
            await self._images.drop(image)
        else:
            for name in await self._images.list_snapshots(image):
                if f"{image}@{name}" not in needed:
                    await self._images.drop_snapshot(f"{image}@{name}")
        await self._records.write_chain(image, Chain())


def find_needed(records: Records) -> set[str]:
    """Images with layers that snapshots need."""
    return {name_image(layer) for layer in records.list_kept_layers()}


def _drop(layers: tuple[str, ...], layer: str) -> tuple[str, ...]:
    return tuple(one for one in layers if one != layer)
