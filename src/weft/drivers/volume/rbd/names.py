"""The image of each volume: names in one object of the pool, ``weft-volumes``.

A volume is there once it has its name, and a name is set or taken in one step: so an image that is half made is never seen, and the
two ends of a migration may each have a name for one image. A name is a key ``ID=IMAGE`` without a value. Of several for one volume
that of the highest generation counts: so an image takes another's place in one step.
"""

from __future__ import annotations

from weft.drivers.linux.ceph.programs import CephClient
from weft.drivers.volume.rbd.images import read_generation
from weft.objects.errors import InvalidInput, NotFound

OBJECT = "weft-volumes"


class Names:
    def __init__(self, client: CephClient, pool: str) -> None:
        self._client, self._pool = client, pool

    async def read(self) -> dict[str, str]:
        """Images by the volumes' ids."""
        found = sorted(await self.list(), key=lambda one: read_generation(one[1]))
        return dict(found)

    async def list(self) -> list[tuple[str, str]]:
        """All names there are, also those that count no more: a volume's id, and an image."""
        try:
            keys = await self._rados("listomapkeys", OBJECT)
        except NotFound:
            return []
        pairs = (key.partition("=") for key in keys.splitlines() if "=" in key)
        return [(id_, image) for id_, _, image in pairs]

    async def put(self, volume_id: str, image: str) -> None:
        await self._rados("setomapval", OBJECT, f"{check_id(volume_id)}={image}", "")

    async def take(self, volume_id: str, image: str) -> None:
        """Absent is fine."""
        try:
            await self._rados("rmomapkey", OBJECT, f"{check_id(volume_id)}={image}")
        except NotFound:
            return

    async def _rados(self, *words: str) -> str:
        return await self._client.run("rados", "-p", self._pool, *words)


def check_id(volume_id: str) -> str:
    """Raises InvalidInput."""
    if not volume_id or volume_id.startswith((".", "-")) or any(one in volume_id for one in "/=@~\n "):
        raise InvalidInput(f"{volume_id!r} is not a volume id")
    return volume_id
