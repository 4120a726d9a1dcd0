"""Images in files of the node: an OCI image layout as a folder, or as a plain tar file. They are read as everybody there may
(``worker.py``): what a person names isn't opened with the node's own rights. Source: OCI image layout specification 1.0."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from weft.drivers.image.oci.documents import INDEX_TYPES, MOST_DOCUMENT_BYTES, Descriptor, Index, read_document
from weft.drivers.image.oci.fetch.exchange import Broken, Exchanges
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.image.reference import ImageReference

_TAG = "org.opencontainers.image.ref.name"


class Layout:
    def __init__(self, reference: ImageReference, exchanges: Exchanges) -> None:
        self.where = reference.path
        self._path, self._exchanges = reference.path, exchanges
        self._packed = reference.place == "archive"
        self._members: dict[str, list[int]] | None = None

    async def look_up(self, tag: str) -> str:
        """Find an image's digest by tag; without a tag, of the only image, or else of the one called latest."""
        index = await self._index()
        tagged = [(entry.digest, (entry.annotations or {}).get(_TAG, "")) for entry in index.manifests]
        if not tag and len({digest for digest, _ in tagged}) == 1:
            return tagged[0][0]
        found = {digest for digest, name in tagged if name == (tag or "latest") or name.endswith(f":{tag or 'latest'}")}
        if len(found) == 1:
            return found.pop()
        if not tag and not any(name for _, name in tagged):
            return ""  # images of several platforms, beside each other
        names = ", ".join(sorted({name[:40] for _, name in tagged if name})[:10]) or "none"
        if found or not tag:
            raise InvalidInput(f"{self.where} holds several images", field="spec.image", hint=f"add a tag: {names}")
        raise NotFound(f"{self.where} has no image with the tag {tag}", reason="imageGone", hint=f"there are: {names}")

    async def document(self, name: str) -> tuple[bytes, str]:
        if not name:
            return await self._read("index.json"), INDEX_TYPES[0]
        return await self._read(_place(name)), ""

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async with self._exchanges.ask(await self._request(_place(descriptor.digest), offset)) as answer:
            yield answer.body

    async def close(self) -> None:
        await self._exchanges.close()

    async def _index(self) -> Index:
        document = read_document(await self._read("index.json"), INDEX_TYPES[0])
        if not isinstance(document, Index):
            raise InvalidInput(f"{self.where}: its index.json is not an index", reason="badImage", field="spec.image")
        return document

    async def _read(self, name: str) -> bytes:
        async with self._exchanges.ask(await self._request(name, 0)) as answer:
            return await answer.read(MOST_DOCUMENT_BYTES)

    async def _request(self, name: str, offset: int) -> dict[str, Any]:
        if not self._packed:
            return {"do": "file", "path": f"{self._path}/{name}", "offset": offset, "length": -1}
        if self._members is None:
            async with self._exchanges.ask({"do": "members", "path": self._path}) as answer:
                self._members = answer.head["members"]
        if name not in self._members:
            raise Broken("gone", f"it has no {name}")
        begins, length = self._members[name]
        return {"do": "file", "path": self._path, "offset": begins + offset, "length": length - offset}


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
