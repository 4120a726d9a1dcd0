"""Takes snapshots of volumes that no machine has: what nobody has open becomes a layer as it lies, raw files are copied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, TakenFacts
from weft.contracts.driver.volume import VolumeFacts
from weft.contracts.durable_file import keep_file
from weft.drivers.volume.directory.file_copies import FileCopies, refuse_open
from weft.drivers.volume.directory.layer_records import LayerRecords
from weft.drivers.volume.directory.layers import DirectoryLayers, refuse_encrypted
from weft.drivers.volume.directory.locking import Locking
from weft.objects.errors import IllegalTransition, NotFound


class DirectoryTaking:
    """``inspect`` finds volumes; ``work`` gives the path to make a file at before it gets its name."""

    def __init__(
        self,
        records: LayerRecords,
        layers: DirectoryLayers,
        inspect: Callable[[str], VolumeFacts | None],
        work: Callable[[str], Path],
        locked: Locking,
    ) -> None:
        self._records, self._layers, self._inspect, self._locked = records, layers, inspect, locked
        self._copies = FileCopies(records, work, locked)

    async def take(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> TakenFacts:
        kept = await self._locked(lambda: self._records.find_kept(snapshot.id))
        if kept is not None:
            return TakenFacts("filesystem", 0.0)  # how it was is not recorded
        raw: dict[str, Path] = {}
        for volume_id in layers:
            facts = self._find(volume_id)
            refuse_encrypted(facts)
            if facts.format == "raw":
                raw[volume_id] = Path(facts.path)
            else:
                await asyncio.to_thread(refuse_open, Path(facts.path), volume_id)
        async with self._copies.make({layers[id_]: (id_, path) for id_, path in raw.items()}) as made:
            for volume_id, layer_id in layers.items():
                if volume_id not in raw:
                    await self._layers.begin_layer(volume_id, layer_id)
                    await self._layers.finish_layer(volume_id, layer_id)

            def keep() -> None:
                chains = {id_: (*made.below[layers[id_]], layers[id_]) for id_ in raw}
                chains |= {id_: self._records.read(id_).layers for id_ in layers if id_ not in raw}
                for below in (layer for chain in made.below.values() for layer in chain):
                    if not self._records.layer(below).exists():  # its snapshot is gone, or it was united with another
                        raise IllegalTransition(
                            f"layer {below} under snapshot {snapshot.id} has gone", hint="try again in a moment"
                        )
                for layer_id, work in made.files.items():
                    keep_file(work, self._records.layer(layer_id))
                disks = {
                    id_: KeptDisk(chain, self._find(id_).size_bytes, snapshot.disks[id_].name)
                    for id_, chain in chains.items()
                }
                self._records.keep(msgspec.structs.replace(snapshot, disks=disks))

            await self._locked(keep)
        return made.facts

    def _find(self, volume_id: str) -> VolumeFacts:
        facts = self._inspect(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on {self._locked.where}")
        return facts
