"""Container images on this node, as its containers need them: pulled once for each, then the same by its digest. Those that the
fabric itself holds come from the server, as archives that stay until they are unpacked.

Acts through the node's store of them. Called by the performer; unused ones are let go of after a pull, as far as the store's
budget asks for it.
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
    """An image that is here: its ``layers`` as folders, the uppermost first, what it says, and who ``user`` is in it."""

    digest: str
    layers: list[str]
    config: OciConfig
    user: User


def name_user(container: AllocatedContainer, config: OciConfig) -> str:
    """Whom it runs as, as it is written: to be looked up in the image."""
    return container.user or config.user


class ContainerImages:
    """``store`` None: this node keeps none. ``archives`` are the server's; what ``table`` uses is kept."""

    def __init__(
        self,
        store: OciStore | None,
        archives: ImageCache,
        table: AllocationTable,
        clock: Clock,
    ) -> None:
        self._store, self._archives, self._table, self._clock = store, archives, table, clock
        self._fresh: dict[str, str] = {}  # by allocation: what it was given, whether or not it is remembered yet
        self._forgetting: asyncio.Task[None] | None = None

    async def ensure(
        self,
        local: LocalAllocation,
        digest: str,
        show: Callable[[str], None],
        credentials: RegistryCredentials | None = None,
    ) -> tuple[PulledImage, str]:
        """The image of ``local``, that with ``digest`` if it has had one before, and a word on how it came here. Raises
        WeftError, as OciStore.pull does."""
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
        said = f"{format_bytes(seen[0])} in {self._clock.elapsed() - began:.1f} s" if seen[0] else "cached"
        return PulledImage(image.digest, self._store.root(image), image.config, user), said

    def drop(self, uid: str) -> None:
        """Nothing of this allocation is here any more."""
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
            log.warning("unused container images can't be removed: %s", problem)
            return
        if freed:
            log.info("container images: %s of unused images removed", format_bytes(freed))


async def take_in(
    store: OciStore,
    archives: ImageCache,
    image: AllocatedImage,
    progress: Callable[[int, int], None],
    ticket: str = "",
) -> OciImage:
    """One that the fabric holds. Its archive is fetched (by ``ticket``, or this node's right to it) only if what is in it isn't
    here. Raises WeftError, as OciStore.pull and ImageCache do."""
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
