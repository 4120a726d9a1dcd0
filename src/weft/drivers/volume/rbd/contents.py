"""The contents of RBD images beside their earlier snapshots, and their restoration."""

from __future__ import annotations

import json
from collections.abc import Callable

from weft.drivers.linux.ceph.programs import CephClient
from weft.objects.errors import NotFound

LOOK_SECONDS, COPY_SECONDS = 600.0, 3600.0


class Contents:
    """Contents of RBD images. ``at``: the name by which Ceph's programs know an image or a layer, ``IMAGE@LAYER``."""

    def __init__(self, client: CephClient, at: Callable[[str], str]) -> None:
        self._client, self._at = client, at

    async def find_size(self, image: str) -> int:
        """Raises NotFound."""
        return int((await self._client.ask("rbd", "info", self._at(image)))["size"])

    async def find_parent(self, image: str) -> str:
        """The layer that it is a clone of; "". Raises NotFound."""
        found = (await self._client.ask("rbd", "info", self._at(image))).get("parent")
        return f"{found['image']}@{found['snapshot']}" if found else ""

    async def measure_snapshot(self, layer: str) -> int:
        """How large the disk was. Raises NotFound."""
        image, _, name = layer.partition("@")
        for one in await self._client.ask("rbd", "snap", "ls", self._at(image)):
            if one["name"] == name:
                return int(one["size"])
        raise NotFound(f"there is no layer {self._at(layer)}")

    async def list_changes(self, at: str, since: str = "") -> list[tuple[int, int, bool]]:
        """Offset, length and whether it is zero, of what differs between a layer, or an image as it is, and its earlier snapshot
        ``since``; "": of all that it holds. Raises NotFound."""
        words = ["diff", self._at(at), *(["--from-snap", since] if since else [])]
        found = json.loads(await self._client.run("rbd", *words, "--format", "json", seconds=LOOK_SECONDS))
        return [(int(one["offset"]), int(one["length"]), str(one["exists"]) != "true") for one in found]

    async def is_changed(self, layer: str) -> bool:
        """Whether its image may hold something else now. Raises NotFound."""
        image, _, name = layer.partition("@")
        return bool(await self.list_changes(image, name))

    async def roll_back(self, layer: str) -> None:
        """Make its image as it was; if cut off, it is half of both. Raises NotFound."""
        await self._client.run("rbd", "snap", "rollback", self._at(layer), "--no-progress", seconds=COPY_SECONDS)
