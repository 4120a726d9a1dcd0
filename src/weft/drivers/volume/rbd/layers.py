"""Layers of RBD volumes: snapshots inside of their images, which need no files of their own. See the contract ``Layers``.

A running guest's machine takes the snapshot itself, at the instant at which its other disks switch; else ``finish_layer`` does. A
volume that is made from a snapshot is a clone of it. A layer that nothing needs goes at once, also while a guest has the image
open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from weft.contracts.driver.layers import MOST_LAYERS, KeptSnapshot, Layer
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.rbd.images import (
    Images,
    choose_generation,
    name_disk,
    read_generation,
    read_layer,
)
from weft.drivers.volume.rbd.layer_changes import LayerChanges, find_needed
from weft.drivers.volume.rbd.names import Names, check_id
from weft.drivers.volume.rbd.records import (
    Chain,
    RecordStore,
    StoredDisk,
    name_layer,
)
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound


class RbdLayers:
    """``check_space`` raises DriverFailed (``noSpace``) for a pool that can take no more."""

    def __init__(
        self,
        records: RecordStore,
        changes: LayerChanges,
        images: Images,
        names: Names,
        where: str,
        check_space: Callable[[], Awaitable[None]],
    ) -> None:
        self._records, self._changes, self._images, self._names, self._where = records, changes, images, names, where
        self._check_space = check_space

    async def list_layers(self, volume_id: str) -> list[Layer]:
        image = (await self._names.read()).get(volume_id)
        chain = (await self._records.read()).chains.get(image or "", Chain())
        return [self._describe(layer) for layer in chain.layers]

    def _describe(self, layer: str) -> Layer:
        return Layer(name_layer(layer), self._path(layer), "rbd", 0)

    def _path(self, layer: str) -> str:
        return f"rbd:{self._images.at(layer)}"

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        image = await self._find(volume_id)
        async with self._changes.changing:
            chain = (await self._records.read()).chains.get(image, Chain())
            if layer_id in map(name_layer, chain.layers):
                return self._path(image)
            if chain.begun != layer_id:
                self._refuse_begun(volume_id, chain)
                if len(chain.layers) >= MOST_LAYERS:
                    raise InvalidInput(
                        "the disk stands on as many snapshots as one can",
                        reason="tooManyLayers",
                        hint="delete snapshots of it that are not needed any more",
                    )
                await self._check_space()
                await self._records.write_chain(image, replace(chain, begun=check_id(layer_id)))
        return self._path(f"{image}@{layer_id}")

    async def finish_layer(self, volume_id: str, layer_id: str) -> Layer:
        image = await self._find(volume_id)
        layer = f"{image}@{layer_id}"
        async with self._changes.changing:
            chain = (await self._records.read()).chains.get(image, Chain())
            if chain.begun == layer_id:
                await self._images.take_snapshot(layer)
                await self._records.write_chain(image, Chain((*chain.layers, layer)))
            elif layer_id not in map(name_layer, chain.layers):
                raise NotFound(f"layer {layer_id} of volume {volume_id} was not begun on {self._where}")
        return self._describe(layer)

    async def undo_layer(self, volume_id: str, layer_id: str) -> None:
        image = (await self._names.read()).get(volume_id)
        if image is None:
            return
        async with self._changes.changing:
            chain = (await self._records.read()).chains.get(image, Chain())
            if chain.begun == layer_id:
                await self._images.drop_snapshot(f"{image}@{layer_id}")
                await self._records.write_chain(image, replace(chain, begun=""))

    async def find_unfinished(self, volume_id: str) -> str:
        image = (await self._names.read()).get(volume_id)
        return (await self._records.read()).chains.get(image or "", Chain()).begun

    async def keep(self, snapshot: KeptSnapshot) -> None:
        async with self._changes.changing:
            await self._changes.keep(snapshot, await self._records.read(), {})

    async def list_kept(self) -> list[KeptSnapshot]:
        kept = (await self._records.read()).kept
        if not kept:
            return []
        sizes, seen, found = await self._images.measure_all(), set[str](), []
        for id_, stored in sorted(kept.items(), key=lambda one: (len(set(one[1].list_layers())), one[0])):
            own = set(stored.list_layers()) - seen
            seen |= own
            found.append(stored.describe(id_, sum(sizes.get(layer, (0, 0))[1] for layer in own)))
        return sorted(found, key=lambda one: one.id)

    async def drop(self, snapshot_id: str) -> None:
        """Its layers first, so that a snapshot that is still listed is dropped again."""
        async with self._changes.changing:
            records, names = await self._records.read(), await self._names.read()
            stored = records.kept.get(snapshot_id)
            if stored is None:
                return
            kept = {id_: one for id_, one in records.kept.items() if id_ != snapshot_id}
            await self._changes.drop_unneeded(stored.list_layers(), replace(records, kept=kept), set(names.values()))
            await self._records.drop(snapshot_id)

    def memory_path(self, snapshot_id: str) -> str:
        return ""

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        check_id(volume_id)
        async with self._changes.changing:
            if volume_id not in await self._names.read():
                await self._check_space()
                await self._clone(volume_id, snapshot_id, disk, size_bytes)
        return await self._describe_volume(volume_id)

    async def _clone(self, volume_id: str, snapshot_id: str, disk: str, size_bytes: int) -> None:
        records = await self._records.read()
        kept = self._changes.find_disk(records, snapshot_id, disk)
        image = name_disk(volume_id, choose_generation(volume_id, find_needed(records)))
        await self._make(volume_id, image, kept, max(size_bytes, kept.size_bytes))

    async def _make(self, volume_id: str, image: str, kept: StoredDisk, size_bytes: int) -> None:
        """Make the volume's image, a clone: it counts once it has its name."""
        await self._images.drop(image)  # what was begun and has no name
        try:
            await self._images.clone(kept.layers[-1], image, size_bytes)
        except NotFound as problem:
            raise NotFound(
                f"layer {kept.layers[-1]} is not in {self._where}",
                reason="snapshotGone",
                hint="restore another snapshot",
            ) from problem
        await self._records.write_chain(image, Chain(kept.layers))
        await self._names.put(volume_id, image)

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        image = await self._find(volume_id)
        async with self._changes.changing:
            if read_layer(image) != layer_id:
                records = await self._records.read()
                self._refuse_begun(volume_id, records.chains.get(image, Chain()))
                kept = self._changes.find_disk(records, snapshot_id, disk)
                await self._check_space()
                new = name_disk(volume_id, read_generation(image) + 1, check_id(layer_id))
                await self._make(volume_id, new, kept, kept.size_bytes)
            await self._settle(volume_id)
        return await self._describe_volume(volume_id)

    async def _settle(self, volume_id: str) -> None:
        """Images that another has taken the place of are not the volume's any more."""
        now = (await self._names.read()).get(volume_id)
        for id_, image in await self._names.list():
            if id_ == volume_id and image != now:
                await self._changes.release_image(volume_id, image)

    async def keep_present(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> None:
        async with self._changes.changing:
            records = await self._records.read()
            if snapshot.id in records.kept:
                return
            own = {}
            for volume_id, layer_id in layers.items():
                image = await self._find(volume_id)
                self._refuse_begun(volume_id, records.chains.get(image, Chain()))
                own[check_id(layer_id)] = f"{image}@{layer_id}"
            for layer in own.values():
                await self._images.drop_snapshot(layer)  # of an earlier time, when it was cut off here
                await self._images.take_snapshot(layer)
            await self._changes.keep(snapshot, records, own)

    async def list_unneeded(self, volume_id: str) -> list[str]:
        names = await self._names.read()
        if volume_id not in names:
            return []
        unneeded = (await self._records.read()).list_unneeded(names[volume_id], names.values())
        return list(map(name_layer, unneeded))

    async def forget_layer(self, volume_id: str, layer_id: str) -> None:
        async with self._changes.changing:
            names, records = await self._names.read(), await self._records.read()
            unneeded = records.list_unneeded(names.get(volume_id, ""), names.values())
            for layer in [one for one in unneeded if name_layer(one) == layer_id]:
                await self._changes.drop_layer(layer, records)

    async def absorb_layer(self, volume_id: str, layer_id: str, *, base: str | None, base_format: str) -> None:
        """A snapshot inside of an image has no content that another lacks."""
        await self.forget_layer(volume_id, layer_id)

    async def _find(self, volume_id: str) -> str:
        image = (await self._names.read()).get(volume_id)
        if image is None:
            raise NotFound(f"volume {volume_id} is not in {self._where}")
        return image

    async def _describe_volume(self, volume_id: str) -> VolumeFacts:
        image = await self._find(volume_id)
        return describe_volume(self._images, volume_id, image, *await self._images.measure(image))

    def _refuse_begun(self, volume_id: str, chain: Chain) -> None:
        if chain.begun:
            raise IllegalTransition(
                f"a snapshot of volume {volume_id} is being taken (layer {chain.begun})", hint="try again in a moment"
            )


def describe_volume(images: Images, volume_id: str, image: str, size: int, used: int) -> VolumeFacts:
    return VolumeFacts(volume_id, f"rbd:{images.at(image)}", "raw", size, used, images.describe(image))
