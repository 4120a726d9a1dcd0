"""The fake volume driver: a node's disks as values, for tests and simulated nodes. Touches nothing outside.

What a disk would keep lives in a ``FakeShelf``; a driver made anew on the same shelf finds everything again. Delays and
failures are set on the driver and met by its next calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.fake.layers import FakeLayers, FakeTaking, LayerShelf
from weft.objects.errors import InvalidInput, NotFound, WeftError


@dataclass
class FakeShelf:
    """A shelf that outlives a driver: the volumes by id, and the sizes of the image files that may be their base, and layers."""

    volumes: dict[str, VolumeFacts] = field(default_factory=dict)
    bases: dict[str, int] = field(default_factory=dict)
    layers: LayerShelf = field(default_factory=LayerShelf)


class FakeVolumes:
    """``delays_seconds`` and ``failures`` go by method name ("ensure"); a failure list is used up from its front, one
    error per call. ``calls`` records every call as (method, id)."""

    name = "fake"

    def __init__(self, host: Host, clock: Clock, shelf: FakeShelf | None = None) -> None:
        self.shelf = shelf if shelf is not None else FakeShelf()
        self.delays_seconds: dict[str, float] = {}
        self.failures: dict[str, list[WeftError]] = {}
        self.calls: list[tuple[str, str]] = []
        self._host = host
        self._clock = clock
        folder = f"{host.state_dir}/volumes/layers"
        self.layers = FakeLayers(self.shelf.layers, self.shelf.volumes, folder, self._meet, self._describe)
        self.taking = FakeTaking(self.shelf.layers, self.layers, self.shelf.volumes, self._meet)

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        """Make the volume if it isn't there; raises InvalidInput for one without a size, or smaller than its base."""
        await self._meet("ensure", volume_id)
        found = self.shelf.volumes.get(volume_id)
        if found is not None:
            return found
        smallest = self.shelf.bases.get(base, 0) if base is not None else 0
        size = size_bytes or smallest
        if base is None and size <= 0:
            raise InvalidInput(f"volume {volume_id} has no size", field="size")
        if size < smallest:
            raise InvalidInput(f"volume {volume_id}: {size} bytes are less than its image's {smallest}", field="size")
        facts = self._describe(volume_id, size)
        self.shelf.volumes[volume_id] = facts
        return facts

    async def ensure_files(self, volume_id: str, *, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> VolumeFacts:
        await self._meet("ensure_files", volume_id)
        found = self.shelf.volumes.get(volume_id)
        size = max(size_bytes, found.size_bytes if found is not None else 0)
        facts = VolumeFacts(volume_id, f"{self._host.state_dir}/volumes/{volume_id}.raw", "raw", size, 0)
        self.shelf.layers.forget_volume(volume_id)
        self.shelf.volumes[volume_id] = facts
        return facts

    async def inspect(self, volume_id: str) -> VolumeFacts | None:
        await self._meet("inspect", volume_id)
        return self.shelf.volumes.get(volume_id)

    async def grow(self, volume_id: str, size_bytes: int) -> VolumeFacts:
        """Make it larger; raises NotFound, InvalidInput for less than it has."""
        await self._meet("grow", volume_id)
        facts = self.shelf.volumes.get(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on node {self._host.node}")
        if size_bytes < facts.size_bytes:
            raise InvalidInput(f"volume {volume_id} can't shrink to {size_bytes} bytes", field="size")
        self.shelf.volumes[volume_id] = grown = msgspec.structs.replace(facts, size_bytes=size_bytes)
        return grown

    async def keep(
        self, volume_id: str, other_id: str, *, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        await self._meet("keep", volume_id)
        facts = self.shelf.volumes.get(volume_id)
        if facts is None:
            raise NotFound(f"volume {volume_id} is not on node {self._host.node}")
        self.shelf.volumes[other_id] = kept = self._describe(other_id, facts.size_bytes)
        return kept

    async def remove(self, volume_id: str) -> None:
        await self._meet("remove", volume_id)
        self.shelf.volumes.pop(volume_id, None)
        self.shelf.layers.forget_volume(volume_id)

    async def list(self) -> list[VolumeFacts]:
        await self._meet("list", "")
        return sorted(self.shelf.volumes.values(), key=lambda facts: facts.id)

    def _describe(self, volume_id: str, size_bytes: int) -> VolumeFacts:
        return VolumeFacts(volume_id, f"{self._host.state_dir}/volumes/{volume_id}.qcow2", "qcow2", size_bytes, 0)

    async def _meet(self, method: str, id: str) -> None:
        self.calls.append((method, id))
        delay = self.delays_seconds.get(method, 0.0)
        if delay:
            await self._clock.sleep(delay)
        waiting = self.failures.get(method)
        if waiting:
            raise waiting.pop(0)
