"""A snapshot's disks to read, each served by the pool that has it: for a copy elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from weft.agent.image.cache import ImageCache
from weft.agent.volume.pools import Pools
from weft.contracts.driver.layers import CopiesDisks, HasLayers, ServedDisk
from weft.kinds.allocation import ROOT
from weft.objects.errors import NotFound
from weft.objects.identity import short_id


@contextlib.asynccontextmanager
async def read_disks(
    pools: Pools,
    images: ImageCache,
    snapshot: str,
    disks: Mapping[str, str],
    *,
    image_sha256: str = "",
    since: str = "",
) -> AsyncIterator[dict[str, ServedDisk]]:
    """Read the disks by name; ``disks`` are by name what the pools' records call them. ``snapshot`` and ``since``: uids; see
    ``DiskCopies.read``. Raises NotFound (``snapshotGone``, ``imageMissing``), DriverFailed."""
    async with contextlib.AsyncExitStack() as stack:
        served = {}
        for name, key in disks.items():
            driver = await find_pool(pools, snapshot, key)
            base, base_format = None, "raw"
            if key == ROOT and image_sha256:
                image = images.find(image_sha256)
                if image is None:
                    raise NotFound("this node does not have the image of the disk any more", reason="imageMissing")
                base, base_format = image.disk, image.disk_format
            served[name] = await stack.enter_async_context(
                driver.copies.read(
                    short_id(snapshot),
                    key,
                    base=base,
                    base_format=base_format,
                    since=short_id(since) if since else "",
                )
            )
        yield served


async def find_pool(pools: Pools, snapshot: str, key: str) -> CopiesDisks:
    """The pool that keeps the snapshot's disk. Raises NotFound (``snapshotGone``)."""
    for _, driver in pools.named():
        if not isinstance(driver, HasLayers) or not isinstance(driver, CopiesDisks):
            continue
        kept = await driver.layers.list_kept()
        if any(one.uid == snapshot and key in one.disks for one in kept):
            return driver
    raise NotFound("this node does not have the snapshot any more", reason="snapshotGone")
