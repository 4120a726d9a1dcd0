"""The images of a pool, and their RBD snapshots: made, cloned and removed. What is removed goes to the pool's trash at once, and
from there in the background.

Clones are of the second format: a snapshot that clones stand on may be removed, and its data goes with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Any

from weft.contracts.driver.volume import RbdImage
from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.base_images import BaseImages
from weft.drivers.volume.rbd.place import RbdPlace
from weft.objects.errors import DriverFailed, NotFound, WeftError

DISK, KEPT = "weft-disk-", "weft-kept-"  # of a volume; of a disk that came from a backup, and no volume had
MOST_LOOKS = 5  # at all images, while others remove some
_GENERATION, _LAYER = "~", "."
log = logging.getLogger("weft.agent")


class Images:
    def __init__(self, client: CephClient, place: RbdPlace, bases: BaseImages, where: str) -> None:
        self._client, self._place, self._bases, self._where = client, place, bases, where
        self.purging: set[asyncio.Task[None]] = set()

    def at(self, image: str) -> str:
        return f"{self._place.pool}/{image}"

    def describe(self, image: str) -> RbdImage:
        return RbdImage(self._place.pool, image, self._place.conf, self._place.user)

    async def run(self, *words: str) -> None:
        await self._client.run("rbd", *words)

    async def measure(self, image: str) -> tuple[int, int]:
        """Its size, and what it takes up beside its snapshots. Raises NotFound, DriverFailed."""
        found = (await self._client.ask("rbd", "du", self.at(image)))["images"]
        [own, *_] = [one for one in found if "snapshot" not in one]
        return int(own["provisioned_size"]), int(own["used_size"])

    async def measure_all(self) -> dict[str, tuple[int, int]]:
        """The same of all images of the pool, and of their snapshots, which are called ``IMAGE@LAYER``."""
        found = (await self._ask_usage())["images"]
        return {
            f"{one['name']}@{one['snapshot']}" if "snapshot" in one else str(one["name"]): (
                int(one["provisioned_size"]),
                int(one["used_size"]),
            )
            for one in found
        }

    async def _ask_usage(self) -> Any:
        """rbd goes from image to image, and gives up at one that was removed since it listed them."""
        for _ in range(MOST_LOOKS - 1):
            with contextlib.suppress(NotFound):
                return await self._client.ask("rbd", "du", "-p", self._place.pool)
        return await self._client.ask("rbd", "du", "-p", self._place.pool)

    async def create(self, image: str, size_bytes: int) -> None:
        await self.run("create", self.at(image), "--size", f"{size_bytes}B", "--no-progress")

    async def clone(self, layer: str, image: str, size_bytes: int) -> None:
        """Make a clone that is at least so large. Raises NotFound for a layer that isn't there."""
        await self.run("clone", "--rbd-default-clone-format", "2", self.at(layer), self.at(image))
        if size_bytes > (await self.measure(image))[0]:
            await self.resize(image, size_bytes)

    async def resize(self, image: str, size_bytes: int) -> None:
        await self.run("resize", self.at(image), "--size", f"{size_bytes}B", "--no-progress")

    async def list_snapshots(self, image: str) -> list[str]:
        """Names, in the order in which they were taken. Raises NotFound."""
        return [str(one["name"]) for one in await self._client.ask("rbd", "snap", "ls", self.at(image))]

    async def list_all(self) -> set[str]:
        return {str(one) for one in await self._client.ask("rbd", "ls", "-p", self._place.pool)}

    async def is_written(self, image: str) -> bool:
        """Whether somebody has it open and has written to it, who may write more. Raises NotFound."""
        watchers = (await self._client.ask("rbd", "status", self.at(image)))["watchers"]
        locks = await self._client.ask("rbd", "lock", "ls", self.at(image))
        return bool({str(one["address"]) for one in watchers} & {str(one["address"]) for one in locks})

    async def take_snapshot(self, layer: str) -> None:
        """It may be there. Raises NotFound for an image that isn't there."""
        image, _, name = layer.partition("@")
        if name not in await self.list_snapshots(image):
            await self.run("snap", "create", self.at(layer), "--no-progress")

    async def drop_snapshot(self, layer: str) -> None:
        """Absent is fine."""
        with contextlib.suppress(NotFound):
            await self.run("snap", "rm", self.at(layer), "--no-progress")

    async def drop(self, image: str) -> None:
        """Drop the image with its snapshots. Absent is fine."""
        try:
            for name in await self.list_snapshots(image):
                await self.drop_snapshot(f"{image}@{name}")
            await self.run("trash", "mv", self.at(image))
        except NotFound:
            return
        task = asyncio.ensure_future(self._purge())
        self.purging.add(task)
        task.add_done_callback(self.purging.discard)

    async def _purge(self) -> None:
        """Remove what is weft's in the trash; what fails is tried again with the next."""
        try:
            while await self._purge_once():  # what it stood on can go now
                pass
            await self._bases.tidy()
        except WeftError as problem:
            log.debug("%s: removing from its trash failed, and is tried again: %s", self._where, problem.message)

    async def _purge_once(self) -> bool:
        """Whether something went."""
        gone = False
        for one in await self._client.ask("rbd", "trash", "ls", self._place.pool):
            if str(one["name"]).startswith((DISK, KEPT)):
                with contextlib.suppress(NotFound, DriverFailed):  # clones stand on it, or another node removes it
                    await self.run("trash", "rm", f"{self._place.pool}/{one['id']}", "--no-progress")
                    gone = True
        return gone


def name_disk(volume_id: str, generation: int = 0, layer: str = "") -> str:
    """The image of a volume. ``generation`` grows each time another image takes its place; ``layer`` says why it did."""
    if not generation:
        return f"{DISK}{volume_id}"
    return f"{DISK}{volume_id}{_GENERATION}{generation}{_LAYER}{layer}"


def read_generation(image: str) -> int:
    number = image.rpartition(_GENERATION)[2].partition(_LAYER)[0]
    return int(number) if _GENERATION in image and number.isdecimal() else 0


def read_layer(image: str) -> str:
    return image.rpartition(_GENERATION)[2].partition(_LAYER)[2] if read_generation(image) else ""


def is_disk_of(image: str, volume_id: str) -> bool:
    return image.rpartition(_GENERATION)[0] == f"{DISK}{volume_id}" or image == f"{DISK}{volume_id}"


def choose_generation(volume_id: str, taken: Collection[str]) -> int:
    """The next one, for a volume that isn't there: ``taken`` are images that stay."""
    found = [read_generation(image) for image in taken if is_disk_of(image, volume_id)]
    return max(found) + 1 if found else 0
