"""Copies of snapshots' disks out of a Ceph pool, and of disks into it; see the contract ``DiskCopies``. What changed between two
snapshots, Ceph knows (``rbd diff``).

A disk that comes whole is an image of its own. What continues it is written into that image, and is a further snapshot inside, so
there is nothing to copy when snapshots between go. A disk that continues another's image, as a volume's, is a clone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import msgspec
from msgspec.structs import replace

from weft.contracts.driver.layers import MOST_LAYERS, KeptSnapshot, ServedDisk
from weft.drivers.volume.disk_server import serve_disk
from weft.drivers.volume.rbd.contents import Contents
from weft.drivers.volume.rbd.heads import Heads
from weft.drivers.volume.rbd.images import KEPT, Images
from weft.drivers.volume.rbd.layer_changes import LayerChanges, find_needed
from weft.drivers.volume.rbd.names import check_id
from weft.drivers.volume.rbd.records import Records, RecordStore, StoredDisk, name_image, name_layer
from weft.objects.errors import InvalidInput, NotFound

_SECTOR = 512
_AGAIN = "~"  # behind the name of an image that comes while one of that name is needed


class _Written(msgspec.Struct, frozen=True):
    layer: str
    continues: bool  # what came before
    in_head: bool  # of the image that holds that


class RbdDiskCopies:
    def __init__(
        self,
        records: RecordStore,
        changes: LayerChanges,
        images: Images,
        contents: Contents,
        heads: Heads,
        where: str,
        check_space: Callable[[], Awaitable[None]],
    ) -> None:
        self._records, self._changes, self._images, self._contents = records, changes, images, contents
        self._heads, self._where, self._check_space = heads, where, check_space

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
        extents = await self._contents.list_changes(tip, name_layer(former))
        async with serve_disk(self._name(*tip.split("@")), read_only=True) as socket:
            yield ServedDisk(socket, kept.size_bytes, extents, not former)

    def _name(self, image: str, snapshot: str = "") -> str:
        there = self._images.describe(image)
        node = {"driver": "rbd", "pool": there.pool, "image": image, "conf": there.conf, "user": there.user}
        # Without discards, Ceph would write each zero that is told to it.
        return f"json:{json.dumps({**node, 'snapshot': snapshot} if snapshot else {**node, 'discard': 'unmap'})}"

    @contextlib.asynccontextmanager
    async def write(self, layer_id: str, size_bytes: int, *, on: str = "", disk: str = "") -> AsyncIterator[str]:
        await self._check_space()
        image, is_head = await self._begin(check_id(layer_id), size_bytes, on, disk)
        async with serve_disk(self._name(image), read_only=False) as socket:
            if is_head:
                await self._heads.check(layer_id)
            yield socket

    async def _begin(self, layer_id: str, size_bytes: int, on: str, disk: str) -> tuple[str, bool]:
        """The image to write to, and whether it holds the points before."""
        size, tip = -(-size_bytes // _SECTOR) * _SECTOR, ""
        async with self._changes.changing:
            records = await self._records.read()
            image = _choose_image(layer_id, records)
            await self._images.drop(image)
            if on:
                tip = self._find_tip(records, on, disk, size_bytes)
            is_head = bool(tip) and await self._heads.claim(tip, layer_id, records)
            if not is_head:
                await self._heads.claim_whole(image, layer_id)
        if is_head:
            await self._heads.empty(tip, size)
            return name_image(tip), True
        if tip:
            await self._images.clone(tip, image, size)
        else:
            await self._images.create(image, size)
        return image, False

    def _find_tip(self, records: Records, on: str, disk: str, size_bytes: int) -> str:
        former = self._changes.find_disk(records, on, disk)
        if former.size_bytes > size_bytes:
            raise InvalidInput(
                f"disk {disk} has {size_bytes} bytes, and had {former.size_bytes} in snapshot {on}",
                reason="tooSmall",
                hint="send the whole disk",
            )
        return former.layers[-1]

    async def stand_in(self, layer_id: str, server: str) -> None:
        """Refuse: no image can stand on what is served elsewhere."""
        raise InvalidInput(
            "a VM can't run from a backup while its disks are copied to a Ceph pool",
            reason="unsupported",
            hint="restore it without --instant, or into a pool that is a folder",
        )

    async def take_in(self, snapshot: KeptSnapshot, *, on: str = "") -> None:
        async with self._changes.changing:
            records = await self._records.read()
            if snapshot.id in records.kept:
                return
            former, present = self._list_former(on, records), await self._images.list_all()
            found = {
                name: await self._find_written(disk.layers[-1], former.get(name), records, present)
                for name, disk in snapshot.disks.items()
            }
            for name, one in found.items():
                if one.continues:
                    _refuse_many(name, on, former[name])
            for one in found.values():
                await self._images.take_snapshot(one.layer)
            records = await self._records.read()
            for one in found.values():
                if one.in_head and self._heads.find(name_layer(one.layer), records) != name_image(one.layer):
                    raise self._heads.describe_missing(name_layer(one.layer))  # another may have written there too
            former, disks = self._list_former(on, records), dict(snapshot.disks)  # layers below may be united by now
            for name in [name for name, one in found.items() if one.continues]:
                below = tuple(map(name_layer, former[name].layers))
                disks[name] = replace(disks[name], layers=(*below, *disks[name].layers))
            own = {name_layer(one.layer): one.layer for one in found.values()}
            await self._changes.keep(replace(snapshot, disks=disks, came=True), records, own)
            await self._heads.release(own, await self._records.read())

    def _list_former(self, on: str, records: Records) -> dict[str, StoredDisk]:
        if on and on not in records.kept:
            raise NotFound(f"snapshot {on} is not in {self._where}", reason="snapshotGone", hint="send the whole disk")
        return records.kept[on].disks if on else {}

    async def _find_written(
        self, layer_id: str, former: StoredDisk | None, records: Records, present: set[str]
    ) -> _Written:
        """Find the place of a disk that was written. One that came whole continues nothing, whatever came before it. Raises
        NotFound."""
        image, tip = _choose_image(layer_id, records), former.layers[-1] if former is not None else ""
        if image in present:
            is_clone = bool(tip) and await self._contents.find_parent(image) == tip
            return _Written(f"{image}@{layer_id}", is_clone, in_head=False)
        if tip and self._heads.find(layer_id, records) == name_image(tip):
            return _Written(f"{name_image(tip)}@{layer_id}", True, in_head=True)
        raise self._heads.describe_missing(layer_id)

    async def discard(self, layer_ids: Iterable[str]) -> None:
        wanted = set(layer_ids)
        async with self._changes.changing:
            records = await self._records.read()
            await self._heads.release(wanted, records)
            written = {f"{KEPT}{layer_id}{mark}" for layer_id in wanted for mark in ("", _AGAIN)}
            for image in (written & await self._images.list_all()) - find_needed(records):
                await self._images.drop(image)

    async def list_mergeable(self) -> list[str]:
        if self._heads.is_tidy and not self._records.has_points:
            return []  # this is asked again and again
        async with self._changes.changing:
            records = await self._records.read()
            await self._heads.tidy(records)
        return list(map(name_layer, records.list_mergeable()))

    async def merge(self, layer_id: str) -> None:
        """Ceph keeps what the snapshots above need."""
        async with self._changes.changing:
            records = await self._records.read()
            for layer in [one for one in records.list_mergeable() if name_layer(one) == layer_id]:
                await self._changes.unite(layer, records)


def _choose_image(layer_id: str, records: Records) -> str:
    """Choose the image for a disk that is written whole. One that was taken in already may come again: it stays, and the new one
    goes."""
    image = f"{KEPT}{layer_id}"
    return f"{image}{_AGAIN}" if image in find_needed(records) else image


def _refuse_many(name: str, on: str, former: StoredDisk) -> None:
    if len(former.layers) >= MOST_LAYERS:
        raise InvalidInput(
            f"disk {name} of snapshot {on} has {len(former.layers)} layers; the limit is {MOST_LAYERS}",
            reason="tooManyLayers",
            hint="delete earlier snapshots of it; it has fewer layers a while later",
        )
