"""Writers of images of disks that come, and the heads of images that hold points of replicas: the next point is written over the
newest one there, and becomes a snapshot beside it.

Who writes has a claim in the pool's records, set before the first byte and dropped once what came is a snapshot or counts no more.
Who finds another's claim to a head takes it away and cuts that one off: it was killed, or is on a node that the server lost. What
an earlier process of this node left is dropped once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.contents import Contents
from weft.drivers.volume.rbd.fence import cut_off
from weft.drivers.volume.rbd.images import KEPT, Images
from weft.drivers.volume.rbd.layer_changes import find_needed
from weft.drivers.volume.rbd.records import Claim, Records, RecordStore, name_image, name_layer
from weft.objects.errors import NotFound
from weft.objects.identity import short_id

RUN = uuid.uuid4().hex  # this process


class Heads:
    """All but ``empty`` and ``check`` are called with the records' lock held."""

    def __init__(
        self,
        records: RecordStore,
        images: Images,
        contents: Contents,
        client: CephClient,
        node_uid: str,
        where: str,
    ) -> None:
        self._records, self._images, self._contents = records, images, contents
        self._client, self._where = client, where
        self._node, self.is_tidy = short_id(node_uid), False
        self._writers: dict[str, str] = {}  # by layer: as its claim calls it

    async def claim_whole(self, image: str, layer_id: str) -> None:
        """The layer is written into an image of its own."""
        await self._claim(image, layer_id)

    async def _claim(self, image: str, layer_id: str) -> Claim:
        mine = Claim(image, f"{self._node}-{RUN}-{uuid.uuid4().hex}", layer_id)
        self._writers[layer_id] = mine.writer
        await self._records.write_claim(mine)
        return mine

    async def claim(self, tip: str, layer_id: str, records: Records) -> bool:
        """Whether the layer may be written into the head of the tip's image, of which the tip is the newest snapshot then. Raises
        NotFound (``snapshotGone``), DriverFailed."""
        image = name_image(tip)
        if not image.startswith(KEPT) or await self._find_above(tip, records) is None:
            return False
        mine = await self._claim(image, layer_id)
        records = await self._records.read()
        others = [one for one in records.claims if one.image == image and one != mine]
        for one in others:  # first, so that who opens the image after that sees that it has no claim
            await self._records.drop_claim(one)
        if others:
            await cut_off(self._client, self._images.at(image))
            records = await self._records.read()  # it may have been quicker
        left = await self._find_above(tip, records)
        if left is None:
            await self._records.drop_claim(mine)
            return False
        for name in reversed(left):
            await self._images.drop_snapshot(f"{image}@{name}")
        return True

    async def _find_above(self, tip: str, records: Records) -> list[str] | None:
        """The snapshots above the tip, which no record names; None if one does."""
        image = name_image(tip)
        try:
            present = await self._images.list_snapshots(image)
            above = present[present.index(name_layer(tip)) + 1 :]
        except (NotFound, ValueError):
            raise self._gone(tip) from None
        named = records.list_kept_layers()
        return None if any(f"{image}@{name}" in named for name in above) else above

    async def empty(self, tip: str, size_bytes: int) -> None:
        """Make the head as the tip is, at least so large. Raises NotFound (``snapshotGone``), DriverFailed."""
        image = name_image(tip)
        try:
            size = await self._contents.measure_snapshot(tip)
            if await self._contents.is_changed(tip) or await self._contents.find_size(image) != size:
                await self._contents.roll_back(tip)
        except NotFound:
            raise self._gone(tip) from None
        if size_bytes > size:
            await self._images.resize(image, size_bytes)

    async def check(self, layer_id: str) -> None:
        """Raises NotFound where another has taken the claim away. Who has the image open before this call is cut off with that."""
        if not self.find(layer_id, await self._records.read()):
            raise self.describe_missing(layer_id)

    def find(self, layer_id: str, records: Records) -> str:
        """The image whose head this process writes for the layer; "": none, or another has claimed it since. What an earlier
        process wrote may be half of it."""
        found = [one.image for one in self._list_mine(layer_id, records)]
        return found[0] if found else ""

    def _list_mine(self, layer_id: str, records: Records) -> list[Claim]:
        return [one for one in records.claims if (one.layer, one.writer) == (layer_id, self._writers.get(layer_id))]

    async def release(self, layer_ids: Iterable[str], records: Records) -> None:
        """Release what this process wrote for these layers: it counts no more, but for those that a snapshot needs."""
        for layer_id in layer_ids:
            for one in self._list_mine(layer_id, records):
                await self._release(one, records)
            self._writers.pop(layer_id, None)

    async def _release(self, claim: Claim, records: Records) -> None:
        """Its content before the claim, by which it is found when this is cut off."""
        if claim.image not in find_needed(records):
            await self._images.drop(claim.image)
        elif (layer := f"{claim.image}@{claim.layer}") not in records.list_kept_layers():
            await self._images.drop_snapshot(layer)
        await self._records.drop_claim(claim)

    async def tidy(self, records: Records) -> None:
        """Drop what an earlier process of this node was writing."""
        if self.is_tidy:
            return
        mine, now = f"{self._node}-", f"{self._node}-{RUN}-"
        for one in records.claims:
            if one.writer.startswith(mine) and not one.writer.startswith(now):
                await self._release(one, records)
        self.is_tidy = True

    def describe_missing(self, layer_id: str) -> NotFound:
        return NotFound(f"disk {layer_id} has not come to {self._where}", hint="send it again")

    def _gone(self, tip: str) -> NotFound:
        return NotFound(
            f"layer {name_layer(tip)} is not in {self._where}", reason="snapshotGone", hint="send the whole disk"
        )
