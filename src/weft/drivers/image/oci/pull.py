"""One pull: from a reference to a complete image. Decides what to fetch; the store keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from weft.contracts.clock import Clock
from weft.drivers.image.oci.documents import (
    MOST_DOCUMENT_BYTES,
    Configuration,
    Descriptor,
    Index,
    OciManifest,
    read_configuration,
    read_document,
)
from weft.drivers.image.oci.fetch.download import insist
from weft.drivers.image.oci.fetch.exchange import Broken, Patience
from weft.drivers.image.oci.fetch.source import Source
from weft.drivers.image.oci.platforms import Platform, choose
from weft.objects.errors import DriverFailed, InvalidInput, NotFound

_T = TypeVar("_T")
_DEPTH = 3  # indexes within indexes


class Resolved:
    """``digest`` of the manifest; ``indexes`` are digests of those that it was found through, the outermost first."""

    def __init__(self, digest: str, manifest: OciManifest, indexes: list[str]) -> None:
        self.digest, self.manifest, self.indexes = digest, manifest, indexes


class Pull:
    def __init__(self, source: Source, here: Platform, patience: Patience, clock: Clock) -> None:
        self._source, self._here, self._patience, self._clock = source, here, patience, clock

    async def look_up(self, tag: str) -> str:
        return await self._insist(lambda: self._source.look_up(tag))

    async def resolve(self, name: str) -> Resolved:
        """The manifest for this node of the tag or digest ``name``. Raises NotFound, InvalidInput, DriverFailed (wrongDigest)."""
        indexes: list[str] = []
        while True:
            data, media_type = await self._insist(partial(self._source.document, name))
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            if ":" in name and digest != name:
                raise _wrong(self._source.where, name, digest)
            document = read_document(data, media_type)
            if isinstance(document, OciManifest):
                return Resolved(digest, document, indexes)
            if len(indexes) == _DEPTH:
                raise InvalidInput("its indexes are nested too deeply", reason="badImage", field="spec.image")
            indexes.append(digest)
            name = self._choose(document).digest

    async def configuration(self, manifest: OciManifest) -> Configuration:
        """Raises InvalidInput, also for an image of another platform, DriverFailed (wrongDigest)."""
        if manifest.config.size > MOST_DOCUMENT_BYTES:
            raise InvalidInput(
                f"its configuration has {manifest.config.size} bytes", reason="badImage", field="spec.image"
            )

        async def fetch() -> bytes:
            data = bytearray()
            async with self._source.blob(manifest.config, 0) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > manifest.config.size:
                        raise Broken("badAnswer", "its configuration is longer than its manifest says")
            if len(data) < manifest.config.size:
                raise Broken("cut", "its configuration is cut off")
            return bytes(data)

        data = await self._insist(fetch)
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != manifest.config.digest:
            raise _wrong(self._source.where, manifest.config.digest, found)
        configuration = read_configuration(data, manifest)
        if configuration.platform.os and choose([configuration.platform], self._here) is None:
            raise _no_platform([configuration.platform], self._here)
        return configuration

    def _choose(self, index: Index) -> Descriptor:
        offered = [entry.platform for entry in index.manifests]
        position = choose(offered, self._here)
        if position is None:
            raise _no_platform([one for one in offered if one is not None], self._here)
        return index.manifests[position]

    async def _insist(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        return await insist(attempt, self._source, self._patience, self._clock)


def _no_platform(offered: list[Platform], here: Platform) -> NotFound:
    there = ", ".join(sorted({str(one)[:40] for one in offered if one.os != "unknown"})[:12]) or "none that is named"
    return NotFound(
        f"the image has no variant for {here}",
        reason="noSuchPlatform",
        hint=f"it has: {there}; run it on such a node, or build that variant",
    )


def _wrong(where: str, wanted: str, found: str) -> DriverFailed:
    return DriverFailed(
        f"{where} serves {found} for {wanted}",
        reason="wrongDigest",
        hint="don't trust that registry if it goes on",
        details={"step": "image"},
    )
