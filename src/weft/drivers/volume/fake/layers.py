"""The fake driver's layers: chains of ids on the shelf, without content."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from weft.contracts.driver.layers import MOST_LAYERS, KeptDisk, KeptSnapshot, Layer, TakenFacts
from weft.contracts.driver.volume import VolumeFacts
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound


@dataclass
class LayerShelf:
    """``chains``, ``unfinished`` and ``replaced`` go by volume; ``present``: layers that a volume's file will become."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    kept: dict[str, KeptSnapshot] = field(default_factory=dict)

    def forget_volume(self, volume_id: str) -> None:
        for by_volume in (self.chains, self.unfinished, self.replaced):
            by_volume.pop(volume_id, None)


class FakeLayers:
    """``meet`` is told of each call by its method's name and an id; ``describe`` gives the facts of a volume of some size."""

    def __init__(
        self,
        shelf: LayerShelf,
        volumes: dict[str, VolumeFacts],
        folder: str,
        meet: Callable[[str, str], Awaitable[None]],
        describe: Callable[[str, int], VolumeFacts],
    ) -> None:
        self._shelf, self._volumes, self._folder = shelf, volumes, folder
        self._meet, self._describe_volume = meet, describe

    async def list_layers(self, volume_id: str) -> list[Layer]:
        await self._meet("list_layers", volume_id)
        return [self._describe(layer) for layer in self._shelf.chains.get(volume_id, [])]

    async def begin_layer(self, volume_id: str, layer_id: str) -> str:
        await self._meet("begin_layer", volume_id)
        facts, unfinished = self._check(volume_id), self._shelf.unfinished.get(volume_id, layer_id)
        chain = self._shelf.chains.get(volume_id, [])
        if layer_id in chain:
            return facts.path
        if unfinished != layer_id:
            raise IllegalTransition(f"a snapshot of volume {volume_id} is being taken (layer {unfinished})")
        if len(chain) >= MOST_LAYERS:
            raise InvalidInput(f"the disk has {len(chain)} layers", reason="tooManyLayers", hint="delete snapshots")
        self._shelf.unfinished[volume_id] = layer_id
        return f"{self._describe(layer_id).path}.next"

    async def finish_layer(self, volume_id: str, layer_id: str) -> Layer:
        await self._meet("finish_layer", volume_id)
        if self._shelf.unfinished.get(volume_id) == layer_id:
            self._shelf.chains.setdefault(volume_id, []).append(layer_id)
            del self._shelf.unfinished[volume_id]
        elif layer_id not in self._shelf.chains.get(volume_id, []):
            raise NotFound(f"layer {layer_id} of volume {volume_id} was not begun")
        return self._describe(layer_id)

    async def undo_layer(self, volume_id: str, layer_id: str) -> None:
        await self._meet("undo_layer", volume_id)
        if self._shelf.unfinished.get(volume_id) == layer_id:
            del self._shelf.unfinished[volume_id]

    async def find_unfinished(self, volume_id: str) -> str:
        await self._meet("find_unfinished", volume_id)
        return self._shelf.unfinished.get(volume_id, "")

    async def keep(self, snapshot: KeptSnapshot) -> None:
        await self._meet("keep", snapshot.id)
        self._keep(snapshot)

    def _keep(self, snapshot: KeptSnapshot) -> None:
        there = {layer for chain in self._shelf.chains.values() for layer in chain} | self._shelf.present
        there.update(self._shelf.unfinished.values(), *(self._list_kept(kept) for kept in self._shelf.kept.values()))
        gone = self._list_kept(snapshot) - there
        if gone:
            raise NotFound(f"layer {min(gone)} of snapshot {snapshot.id} is not here")
        self._shelf.kept[snapshot.id] = msgspec.structs.replace(snapshot, used_bytes=snapshot.memory_bytes)

    async def list_kept(self) -> list[KeptSnapshot]:
        await self._meet("list_kept", "")
        return sorted(self._shelf.kept.values(), key=lambda kept: kept.id)

    async def drop(self, snapshot_id: str) -> None:
        await self._meet("drop", snapshot_id)
        self._shelf.kept.pop(snapshot_id, None)

    def memory_path(self, snapshot_id: str) -> str:
        return f"{self._folder}/{snapshot_id}.memory"

    async def clone(self, volume_id: str, snapshot_id: str, disk: str, *, size_bytes: int = 0) -> VolumeFacts:
        await self._meet("clone", volume_id)
        kept = self._find_kept(snapshot_id)
        if disk not in kept.disks:
            raise _gone(snapshot_id)
        if volume_id not in self._volumes:
            size = max(kept.disks[disk].size_bytes, size_bytes)
            self._volumes[volume_id] = self._describe_volume(volume_id, size)
            self._shelf.chains[volume_id] = list(kept.disks[disk].layers)
        return self._volumes[volume_id]

    async def replace(self, volume_id: str, snapshot_id: str, disk: str, layer_id: str) -> VolumeFacts:
        await self._meet("replace", volume_id)
        self._check_finished(volume_id)
        if self._shelf.replaced.get(volume_id) == layer_id:
            return self._volumes[volume_id]
        kept = self._find_kept(snapshot_id)
        if disk not in kept.disks:
            raise _gone(snapshot_id)
        self._shelf.chains[volume_id] = list(kept.disks[disk].layers)
        self._shelf.replaced[volume_id] = layer_id
        self._volumes[volume_id] = self._describe_volume(volume_id, kept.disks[disk].size_bytes)
        return self._volumes[volume_id]

    async def keep_present(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> None:
        await self._meet("keep_present", snapshot.id)
        if snapshot.id in self._shelf.kept:
            return
        for volume_id in layers:
            self._check_finished(volume_id)
        self._shelf.present.update(layers.values())
        self._keep(snapshot)

    async def list_unneeded(self, volume_id: str) -> list[str]:
        await self._meet("list_unneeded", volume_id)
        chain = self._shelf.chains.get(volume_id, [])
        if volume_id in self._shelf.unfinished:
            return []
        others = {layer for id_, other in self._shelf.chains.items() if id_ != volume_id for layer in other}
        kept = [disk.layers for snapshot in self._shelf.kept.values() for disk in snapshot.disks.values()]
        return [
            layer
            for layer, above in zip(chain, [*chain[1:], ""], strict=False)
            if layer not in others and all((layer, above) in pairwise(one) for one in kept if layer in one)
        ]

    async def forget_layer(self, volume_id: str, layer_id: str) -> None:
        await self._meet("forget_layer", volume_id)
        chain = self._shelf.chains.get(volume_id, [])
        if layer_id not in chain:
            return
        above = [*chain, ""][chain.index(layer_id) + 1]
        chain.remove(layer_id)
        for id_, kept in self._shelf.kept.items():
            disks = {
                name: msgspec.structs.replace(disk, layers=tuple(one for one in disk.layers if one != layer_id))
                if (layer_id, above) in pairwise(disk.layers)
                else disk
                for name, disk in kept.disks.items()
            }
            self._shelf.kept[id_] = msgspec.structs.replace(kept, disks=disks)

    async def absorb_layer(self, volume_id: str, layer_id: str, *, base: str | None, base_format: str) -> None:
        await self._meet("absorb_layer", volume_id)
        if layer_id in await self.list_unneeded(volume_id):
            await self.forget_layer(volume_id, layer_id)

    def _check(self, volume_id: str) -> VolumeFacts:
        facts = self._volumes.get(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not here")
        if facts.format == "raw":
            raise InvalidInput(f"volume {volume_id} is a container's", reason="unsupported", hint="detach it first")
        return facts

    def _check_finished(self, volume_id: str) -> None:
        self._check(volume_id)
        if volume_id in self._shelf.unfinished:
            raise IllegalTransition(f"a snapshot of volume {volume_id} is being taken")

    def _find_kept(self, snapshot_id: str) -> KeptSnapshot:
        kept = self._shelf.kept.get(snapshot_id)
        if kept is None:
            raise _gone(snapshot_id)
        return kept

    def _list_kept(self, kept: KeptSnapshot) -> set[str]:
        return {layer for disk in kept.disks.values() for layer in disk.layers}

    def _describe(self, layer_id: str) -> Layer:
        return Layer(layer_id, f"{self._folder}/{layer_id}.qcow2", "qcow2", 0)


class FakeTaking:
    def __init__(
        self,
        shelf: LayerShelf,
        layers: FakeLayers,
        volumes: dict[str, VolumeFacts],
        meet: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._shelf, self._layers, self._volumes, self._meet = shelf, layers, volumes, meet

    async def take(self, snapshot: KeptSnapshot, layers: dict[str, str]) -> TakenFacts:
        await self._meet("take", snapshot.id)
        if snapshot.id not in self._shelf.kept:
            disks: dict[str, KeptDisk] = {}
            for volume_id, layer_id in layers.items():
                facts = self._volumes.get(volume_id)
                if facts is None:
                    raise NotFound(f"volume {volume_id} is not here")
                if facts.format == "raw":
                    self._shelf.present.add(layer_id)
                    chain = [layer_id]
                else:
                    await self._layers.begin_layer(volume_id, layer_id)
                    await self._layers.finish_layer(volume_id, layer_id)
                    chain = self._shelf.chains[volume_id]
                disks[volume_id] = KeptDisk(tuple(chain), facts.size_bytes, snapshot.disks[volume_id].name)
            await self._layers.keep(msgspec.structs.replace(snapshot, disks=disks))
        return TakenFacts("stopped", 0.0)


def _gone(snapshot_id: str) -> NotFound:
    return NotFound(f"snapshot {snapshot_id} is not here", reason="snapshotGone", hint="restore another snapshot")
