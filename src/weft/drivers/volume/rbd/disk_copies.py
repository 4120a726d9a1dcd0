"""Copies of snapshots' disks out of a Ceph pool, and of disks into it; see the contract ``DiskCopies``. What changed between two
snapshots, Ceph knows (``rbd diff``)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from weft.contracts.driver.layers import KeptSnapshot, ServedDisk
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.disk_server import MAP_SECONDS, serve_disk
from weft.drivers.volume.rbd.images import KEPT, Images
from weft.drivers.volume.rbd.layer_changes import LayerChanges, find_needed
from weft.drivers.volume.rbd.records import RecordStore, name_image, name_layer
from weft.objects.errors import InvalidInput, NotFound

_SECTOR = 512


class RbdDiskCopies:
    def __init__(
        self,
        records: RecordStore,
        changes: LayerChanges,
        images: Images,
        client: CephClient,
        check_space: Callable[[], Awaitable[None]],
    ) -> None:
        self._records, self._changes, self._images, self._client = records, changes, images, client
        self._check_space = check_space

    @contextlib.asynccontextmanager
    async def read(
        self, snapshot_id: str, disk: str, *, base: str | None, base_format: str, since: str = ""
    ) -> AsyncIterator[ServedDisk]:
        """The image knows what it stands on: ``base`` isn't asked for."""
        records = await self._records.read()
        kept = self._changes.find_disk(records, snapshot_id, disk)
        tip, former = kept.layers[-1], ""
        if since:
            with contextlib.suppress(NotFound):
                former = self._changes.find_disk(records, since, disk).layers[-1]
        present = await self._images.list_snapshots(name_image(tip))
        if former not in [f"{name_image(tip)}@{name}" for name in present[: present.index(name_layer(tip))]]:
            former = ""
        words = ["diff", self._images.at(tip), *(["--from-snap", name_layer(former)] if former else [])]
        found = json.loads(await self._client.run("rbd", *words, "--format", "json", seconds=MAP_SECONDS))
        extents = [(int(one["offset"]), int(one["length"]), str(one["exists"]) != "true") for one in found]
        async with serve_disk(self._name(*tip.split("@")), read_only=True) as socket:
            yield ServedDisk(socket, kept.size_bytes, extents, not former)

    def _name(self, image: str, snapshot: str = "") -> str:
        there = self._images.describe(image)
        node = {"driver": "rbd", "pool": there.pool, "image": image, "conf": there.conf, "user": there.user}
        return f"json:{json.dumps({**node, 'snapshot': snapshot} if snapshot else node)}"

    @contextlib.asynccontextmanager
    async def write(self, layer_id: str, size_bytes: int, *, on: str = "", disk: str = "") -> AsyncIterator[str]:
        _refuse_to_continue(on)
        await self._check_space()
        image = f"{KEPT}{layer_id}"
        await self._images.drop(image)
        await self._images.create(image, -(-size_bytes // _SECTOR) * _SECTOR)
        async with serve_disk(self._name(image), read_only=False) as socket:
            yield socket

    async def stand_in(self, layer_id: str, server: str) -> None:
        """No image can stand on what is served elsewhere."""
        raise InvalidInput(
            "a VM can't run from a backup while its disks are copied to a Ceph pool",
            reason="unsupported",
            hint="restore it without --instant, or into a pool that is a folder",
        )

    async def take_in(self, snapshot: KeptSnapshot, *, on: str = "") -> None:
        _refuse_to_continue(on)
        own = {id_: f"{KEPT}{id_}@{id_}" for disk in snapshot.disks.values() for id_ in disk.layers}
        async with self._changes.changing:
            records = await self._records.read()
            if snapshot.id in records.kept:
                return
            for layer in own.values():
                await self._images.take_snapshot(layer)
            await self._changes.keep(snapshot, records, own)

    async def discard(self, layer_ids: Iterable[str]) -> None:
        needed = find_needed(await self._records.read())
        for image in {f"{KEPT}{layer_id}" for layer_id in layer_ids} - needed:
            await self._images.drop(image)

    async def list_mergeable(self) -> list[str]:
        """Each disk that was taken in is an image of its own."""
        return []

    async def merge(self, layer_id: str) -> None:
        """There is nothing to unite."""


def _refuse_to_continue(on: str) -> None:
    if on:
        raise InvalidInput(
            "a Ceph pool takes in whole disks only, not what changed since an earlier snapshot",
            reason="unsupported",
            hint="use a pool that is a folder",
        )
