"""Volumes as RBD images in a Ceph pool, which every node of the pool sees: ``names`` says which image each is. Root disks are
clones of ``base_images``, by layers; snapshots lie inside of the images (``layers``).

Works with Ceph's own programs, each within a time; nothing is kept in this process but what may be lost. Called by the agent.
"""

from __future__ import annotations

import asyncio
import threading
import uuid

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.volume import OsdFacts, PoolFacts, VolumeFacts
from weft.drivers.linux.ceph.conf import find_setting, read_parts, write_client_conf
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.base_images import SNAPSHOT, BaseImages, find_size
from weft.drivers.volume.rbd.contents import Contents
from weft.drivers.volume.rbd.disk_copies import RbdDiskCopies
from weft.drivers.volume.rbd.fence import cut_off
from weft.drivers.volume.rbd.heads import Heads
from weft.drivers.volume.rbd.images import Images, choose_generation, name_disk
from weft.drivers.volume.rbd.layer_changes import LayerChanges, find_needed
from weft.drivers.volume.rbd.layers import RbdLayers, describe_volume
from weft.drivers.volume.rbd.names import Names, check_id
from weft.drivers.volume.rbd.osds import SOCKET, LocalOsds
from weft.drivers.volume.rbd.place import read_place
from weft.drivers.volume.rbd.records import RecordStore
from weft.drivers.volume.rbd.taking import RbdTaking
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, WeftError
from weft.objects.quantity import format_bytes

POOL_SECONDS = 5.0  # for so long what the cluster said of the pool counts as now
_SECTOR = 512


class RbdVolumes:
    """The volumes in the Ceph pool at ``place``: ``POOL[?conf=PATH&user=NAME]``. Raises InvalidInput."""

    name = "rbd"

    def __init__(self, host: Host, clock: Clock, pool_name: str, place: str) -> None:
        self._clock = clock
        self._place = read_place(place)
        self._where = f"storage pool {pool_name} of node {host.node}"
        self._client = CephClient(self._place.conf, self._place.user, self._where)
        self._names = Names(self._client, self._place.pool)
        self._bases = BaseImages(self._client, self._place, host.node_uid)
        self._images = Images(self._client, self._place, self._bases, self._where)
        self._records = RecordStore(self._client, self._place.pool)
        self._changes = LayerChanges(self._records, self._images, self._names, self._where)
        self.layers = RbdLayers(self._records, self._changes, self._images, self._names, self._where, self._refuse_full)
        self.taking = RbdTaking(self.layers, self._images, self._names, self._where)
        contents = Contents(self._client, self._images.at)
        heads = Heads(self._records, self._images, contents, self._client, host.node_uid, self._where)
        self.copies = RbdDiskCopies(
            *(self._records, self._changes, self._images, contents, heads, self._where, self._refuse_full)
        )
        self._osds = LocalOsds(clock)
        self._making: dict[str, asyncio.Lock] = {}
        self._asking = threading.Lock()
        self._found: tuple[float, PoolFacts] | None = None

    def pool(self) -> PoolFacts:
        """``free``: what can still be written, with all its copies and Ceph's own reserve counted in."""
        with self._asking:
            now = self._clock.elapsed()
            if self._found is None or now - self._found[0] > POOL_SECONDS:
                self._found = (now, self._ask_pool())
            return self._found[1]

    def _ask_now(self) -> PoolFacts:
        """The pool's facts of now, unlike ``pool``: what the cluster said some seconds ago may have had space left."""
        with self._asking:
            self._found = (self._clock.elapsed(), self._ask_pool())
            return self._found[1]

    def _ask_pool(self) -> PoolFacts:
        write_client_conf(self._place.conf, self._place.user)  # says what is missing in plainer words than Ceph
        fsid = str(self._client.ask_now("ceph", "fsid")["fsid"])
        pools = {str(one["name"]): one for one in self._client.ask_now("ceph", "df", "detail")["pools"]}
        found = pools.get(self._place.pool)
        if found is None:
            raise DriverFailed(
                f"{self._where}: the Ceph cluster has no pool {self._place.pool}",
                hint=f"ceph osd pool create {self._place.pool}, then rbd pool init {self._place.pool}",
                details={"step": "disk"},
            )
        stored, left, quota = (int(found["stats"].get(part, 0)) for part in ("stored", "max_avail", "quota_bytes"))
        left = min(left, max(0, quota - stored)) if quota else left
        return PoolFacts(str(uuid.uuid5(uuid.UUID(fsid), str(found["id"]))), stored + left, left)

    async def keep(
        self, volume_id: str, other_id: str, *, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        return await self.share(volume_id, other_id)  # what it stands on is Ceph's to keep

    async def share(self, volume_id: str, other_id: str) -> VolumeFacts:
        check_id(other_id)
        names = await self._names.read()
        image = names.get(volume_id)
        if image is None or names.get(other_id, image) != image:
            what = f"disk {volume_id} is not there" if image is None else f"{other_id} is another disk than {volume_id}"
            raise DriverFailed(f"{self._where}: {what}", details={"step": "disk"})
        await self._names.put(other_id, image)
        return await self._describe(other_id, image)

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        check_id(volume_id)
        async with self._making.setdefault(volume_id, asyncio.Lock()):
            return await self.inspect(volume_id) or await self._make(volume_id, size_bytes, base, base_format)

    async def _make(self, volume_id: str, size_bytes: int, base: str | None, base_format: str) -> VolumeFacts:
        smallest = await asyncio.to_thread(find_size, base, base_format) if base is not None else 0
        size = _round_up(size_bytes or smallest)
        if base is not None and size < smallest:
            raise InvalidInput(
                f"a disk of {format_bytes(size)} is smaller than its image, {format_bytes(smallest)}",
                field="spec.disk",
                hint="leave disk out, or give at least the image's size",
            )
        if size <= 0:
            raise InvalidInput(f"volume {volume_id} has no size", field="spec.size")
        await self._refuse_full()
        image = name_disk(volume_id, choose_generation(volume_id, find_needed(await self._records.read())))
        await self._images.drop(image)  # what was begun and has no name
        if base is None:
            await self._images.create(image, size)
        else:
            await self._clone(await self._bases.ensure(base, base_format, smallest), image, base, base_format, smallest)
            if size > smallest:
                await self._images.resize(image, size)
        await self._names.put(volume_id, image)
        return await self._describe(volume_id, image)

    async def _clone(self, parent: str, image: str, base: str, base_format: str, size: int) -> None:
        at = self._images.at
        try:
            await self._images.run("clone", f"{at(parent)}@{SNAPSHOT}", at(image))
        except WeftError:  # another node has removed the parent, which no disk stood on
            parent = await self._bases.ensure(base, base_format, size)
            await self._images.run("clone", f"{at(parent)}@{SNAPSHOT}", at(image))

    async def _refuse_full(self) -> None:
        """A full cluster doesn't refuse: it lets who writes wait."""
        facts = await asyncio.to_thread(self._ask_now)
        if facts.free_bytes <= 0:
            raise DriverFailed(
                f"{self._where} is full: the Ceph pool {self._place.pool} can take no more data",
                reason="noSpace",
                hint="add OSDs, or delete volumes; ceph df tells what is in use",
                details={"step": "disk"},
            )

    async def inspect(self, volume_id: str) -> VolumeFacts | None:
        image = (await self._names.read()).get(check_id(volume_id))
        if image is None:
            return None
        try:
            return await self._describe(volume_id, image)
        except NotFound:
            return None

    async def grow(self, volume_id: str, size_bytes: int) -> VolumeFacts:
        facts = await self.inspect(volume_id)
        if facts is None or facts.rbd is None:
            raise NotFound(f"volume {volume_id} is not in {self._where}")
        if size_bytes < facts.size_bytes:
            raise InvalidInput(
                f"volume {volume_id} can't shrink from {format_bytes(facts.size_bytes)} to {format_bytes(size_bytes)}",
                field="size",
            )
        if size_bytes > facts.size_bytes:
            await self._images.resize(facts.rbd.image, _round_up(size_bytes))
        return await self.inspect(volume_id) or facts

    async def remove(self, volume_id: str) -> None:
        """Its data goes to the pool's trash at once, and from there in the background; what snapshots need of it stays."""
        self._making.pop(check_id(volume_id), None)
        async with self._changes.changing:
            await self._changes.release(volume_id)

    def osds(self) -> list[OsdFacts]:
        parts = read_parts(self._place.conf)
        return self._osds.inspect(find_setting(parts, ("osd", "global"), "admin_socket") or SOCKET)

    async def fence(self, volume_id: str) -> list[str]:
        image = (await self._names.read()).get(check_id(volume_id))
        return [] if image is None else await cut_off(self._client, self._images.at(image))

    async def _describe(self, volume_id: str, image: str) -> VolumeFacts:
        return describe_volume(self._images, volume_id, image, *await self._images.measure(image))

    async def list(self) -> list[VolumeFacts]:
        names = await self._names.read()
        if not names:
            return []
        found = await self._images.measure_all()
        return [
            describe_volume(self._images, id_, image, *found[image])
            for id_, image in sorted(names.items())
            if image in found
        ]


def _round_up(size: int) -> int:
    return -(-size // _SECTOR) * _SECTOR
