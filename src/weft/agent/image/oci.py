"""The images of this node's containers: pulled once for each container, then the same by digest. Images that the fabric itself
holds come from the server as archives, which are removed once they are unpacked.

Acts through the node's image store. Called by the executor; after a pull, unused images are removed as far as the store's budget
requires it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from weft.agent.image.cache import ImageCache
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.driver.container import User
from weft.contracts.driver.image import OciConfig, OciImage, OciStore, RegistryCredentials
from weft.kinds.allocation import AllocatedContainer, AllocatedImage
from weft.objects.errors import InvalidInput, NotAuthenticated, NotFound, WeftError
from weft.objects.quantity import format_bytes

log = logging.getLogger("weft.agent")


class PulledImage(msgspec.Struct, frozen=True):
    """An image that is here."""

    digest: str
    layers: list[str]  # folders, the uppermost first
    config: OciConfig
    user: User


def name_user(container: AllocatedContainer, config: OciConfig) -> str:
    """The user that it runs as, as written in its spec or image."""
    return container.user or config.user


class ContainerImages:
    """``store`` None: this node can't store container images. ``archives`` fetches those of the server. Images that ``table``
    uses are kept."""

    def __init__(
        self,
        store: OciStore | None,
        archives: ImageCache,
        table: AllocationTable,
        clock: Clock,
    ) -> None:
        self._store, self._archives, self._table, self._clock = store, archives, table, clock
        self._fresh: dict[str, str] = {}  # by allocation: its image's digest, perhaps not saved yet
        self._forgetting: asyncio.Task[None] | None = None

    async def ensure(
        self,
        local: LocalAllocation,
        digest: str,
        show: Callable[[str], None],
        credentials: RegistryCredentials | None = None,
    ) -> tuple[PulledImage, str]:
        """The image of ``local``, with ``digest`` if it has had one before, and how it came here, for people. Raises WeftError, as
        OciStore.pull does."""
        container = local.spec.container
        if container is None:
            raise InvalidInput(f"{local.what} is not a container")
        if self._store is None:
            raise InvalidInput(f"{local.what}: this node can't store container images", reason="notServed")
        began, seen = self._clock.elapsed(), [0]

        def on_progress(here: int, total: int) -> None:
            seen[0] = max(here, total)
            show(f"{format_bytes(here)} of {format_bytes(total)}" if total else format_bytes(here))

        try:
            if local.spec.image is not None:
                image = await take_in(self._store, self._archives, local.spec.image, on_progress)
            else:
                image = await self._store.pull(container.image, digest, credentials=credentials, progress=on_progress)
            self._fresh[local.uid] = image.digest
        except NotAuthenticated as problem:
            secret = container.registry_secret
            problem.message += f"; check secret {secret}" if secret else "; set registry_secret"
            raise
        finally:
            if seen[0]:
                self._forget()
        user = await self._store.find_user(image, name_user(container, image.config))
        detail = f"{format_bytes(seen[0])} in {self._clock.elapsed() - began:.1f} s" if seen[0] else "cached"
        return PulledImage(image.digest, self._store.root(image), image.config, user), detail

    def drop(self, uid: str) -> None:
        """The allocation is gone from this node."""
        self._fresh.pop(uid, None)

    async def close(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
            await asyncio.gather(self._forgetting, return_exceptions=True)

    def _forget(self) -> None:
        if self._forgetting is None or self._forgetting.done():
            self._forgetting = asyncio.ensure_future(self._forget_unused())

    async def _forget_unused(self) -> None:
        used = self._table.container_images()
        if used is None or self._store is None:
            return
        try:
            freed = await self._store.forget({*used, *self._fresh.values()})
        except (WeftError, OSError) as problem:
            log.warning("can't remove unused container images: %s", problem)
            return
        if freed:
            log.info("container images: removed %s of unused images", format_bytes(freed))


async def take_in(
    store: OciStore,
    archives: ImageCache,
    image: AllocatedImage,
    progress: Callable[[int, int], None],
    ticket: str = "",
) -> OciImage:
    """Pull an image that the fabric holds. Its archive is fetched (by ``ticket``, or because an allocation here names it) only if
    its layers aren't here. Raises WeftError, as OciStore.pull and ImageCache do."""
    archive = archives.archive_path(image)
    reference = f"oci-archive:{archive}"
    try:
        return await store.pull(reference, image.digest, own_file=True)
    except NotFound as problem:
        if problem.token != "imageGone":
            raise
    async with archives.hold_archive(image, lambda length: progress(length, image.size), ticket):
        try:
            return await store.pull(reference, image.digest, own_file=True)
        except WeftError as problem:
            problem.message = problem.message.replace(reference, image.name).replace(str(archive), "its archive")
            raise
