"""Saved containers on their way to another node, or from one: a file with their processes and what they wrote into the root."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from weft.drivers.runtime.oci.checkpoint.criu import is_saved, pack, unpack
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.record import write_record
from weft.drivers.runtime.oci.rootfs.overlay import make_folders
from weft.objects.errors import IllegalTransition


class Carrying:
    """Migrations of one driver's containers; ``find`` gives None for a container that it doesn't know."""

    def __init__(
        self,
        lock: Callable[[str], asyncio.Lock],
        find: Callable[[str], Awaitable[Container | None]],
        paths: Callable[[str], ContainerPaths],
        notify: Callable[[], None],
    ) -> None:
        self._lock, self._find, self._paths, self._notify = lock, find, paths, notify

    async def pack(self, guest_id: str) -> str:
        """See contracts.driver.runtime."""
        async with self._lock(guest_id):
            container = await self._find(guest_id)
            if container is not None:
                await container.cleared()
            if container is None or not is_saved(container.record):
                raise IllegalTransition(
                    f"container/{container.record.plan.name if container else guest_id} is not saved"
                )
            await asyncio.to_thread(pack, container.paths)
        return str(container.paths.saved.carried)

    async def expect(self, guest_id: str) -> str:
        """See contracts.driver.runtime."""
        paths = self._paths(guest_id)
        make_folders(paths)
        return str(paths.saved.carried)

    async def unpack(self, guest_id: str, uid: str, incarnation: int, make_plan: Callable[[], Any]) -> None:
        """See contracts.driver.runtime."""
        async with self._lock(guest_id):
            paths = self._paths(guest_id)
            if await self._find(guest_id) is None:
                record = await asyncio.to_thread(unpack, paths)
                record.plan = msgspec.structs.replace(record.plan, id=guest_id, uid=uid, incarnation=incarnation)
                await asyncio.to_thread(write_record, paths, record)  # from here on it is here
                await self._find(guest_id)
            paths.saved.carried.unlink(missing_ok=True)
        self._notify()
