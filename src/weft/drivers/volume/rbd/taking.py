"""Takes snapshots of volumes that no machine has."""

from __future__ import annotations

from msgspec.structs import replace

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, TakenFacts
from weft.drivers.volume.rbd.images import Images
from weft.drivers.volume.rbd.layers import RbdLayers
from weft.drivers.volume.rbd.names import Names
from weft.objects.errors import IllegalTransition, NotFound


class RbdTaking:
    def __init__(self, layers: RbdLayers, images: Images, names: Names, where: str) -> None:
        self._layers, self._images, self._names, self._where = layers, images, names, where

    async def take(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> TakenFacts:
        if any(kept.id == snapshot.id for kept in await self._layers.list_kept()):
            return TakenFacts("stopped", 0.0)
        names, disks = await self._names.read(), {}
        for volume_id in layers:
            if volume_id not in names:
                raise NotFound(f"volume {volume_id} is not in {self._where}")
            if await self._images.is_written(names[volume_id]):
                raise IllegalTransition(
                    f"volume {volume_id} is in use by a machine",
                    reason="inUse",
                    hint="stop it first, or take a snapshot of the VM",
                )
        for volume_id, layer_id in layers.items():
            await self._layers.begin_layer(volume_id, layer_id)
            await self._layers.finish_layer(volume_id, layer_id)
            chain = tuple(layer.id for layer in await self._layers.list_layers(volume_id))
            size, _ = await self._images.measure(names[volume_id])
            disks[volume_id] = KeptDisk(chain, size, snapshot.disks[volume_id].name)
        await self._layers.keep(replace(snapshot, disks=disks))
        return TakenFacts("stopped", 0.0)
