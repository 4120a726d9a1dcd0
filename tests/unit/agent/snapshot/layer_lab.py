"""A pool with layers, made of values, and the parts of an agent that look after its snapshots."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from tests.scenario.agent_lab import ADDRESS, NODE, NODE_UID, StubServer

from weft.agent.server.reporter import Reporter
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.state.table import AllocationTable
from weft.agent.tasks import Tasks
from weft.agent.volume.pools import Pools
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot, Layer
from weft.contracts.driver.volume import PoolFacts
from weft.drivers.volume.fake.driver import FakeVolumes
from weft.objects.errors import DriverFailed, WeftError
from weft.objects.identity import short_id

MIB = 1 << 20


class ValueLayers:
    """The part of ``Layers`` that inventory and absorption use. ``chains``: of each volume its layers' ids, bottom first."""

    def __init__(self) -> None:
        self.kept: dict[str, KeptSnapshot] = {}
        self.chains: dict[str, list[str]] = {}
        self.failures: list[WeftError] = []  # one per absorption
        self.absorbed: list[tuple[str, str, str | None]] = []  # offline: volume, layer, base
        self.looks = 0
        self.gate: asyncio.Event | None = None  # absorption waits for it

    def add(self, uid: str, *, used: int = MIB, memory: int = 0, **disks: list[str]) -> None:
        kept = {disk: KeptDisk(tuple(layers), MIB) for disk, layers in disks.items()}
        self.kept[short_id(uid)] = KeptSnapshot(short_id(uid), uid, kept, memory, used)

    async def list_kept(self) -> list[KeptSnapshot]:
        return list(self.kept.values())

    async def drop(self, snapshot_id: str) -> None:
        self.kept.pop(snapshot_id, None)

    async def list_layers(self, volume_id: str) -> list[Layer]:
        return [Layer(id_, f"/pool/{id_}", "qcow2", MIB) for id_ in self.chains.get(volume_id, [])]

    async def list_unneeded(self, volume_id: str) -> list[str]:
        self.looks += 1
        tips = {disk.layers[-1] for one in self.kept.values() for disk in one.disks.values()}
        others = {id_ for volume, chain in self.chains.items() if volume != volume_id for id_ in chain}
        return [id_ for id_ in self.chains.get(volume_id, []) if id_ not in tips | others]

    async def forget_layer(self, volume_id: str, layer_id: str) -> None:
        self.chains[volume_id].remove(layer_id)

    async def absorb_layer(self, volume_id: str, layer_id: str, *, base: str | None, base_format: str) -> None:
        await self.meet()
        self.absorbed.append((volume_id, layer_id, base))
        await self.forget_layer(volume_id, layer_id)

    async def meet(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)


class LayeredPool(FakeVolumes):
    """``id``: of its storage; "" while it isn't mounted."""

    def __init__(self, host: Host, id_: str) -> None:
        super().__init__(host, SystemClock())
        self.layers = ValueLayers()
        self.id = id_

    def pool(self) -> PoolFacts:
        if not self.id:
            raise DriverFailed("it isn't mounted")
        return PoolFacts(self.id, 1 << 40, 1 << 39)

    async def share(self, volume_id: str, other_id: str) -> object:
        raise NotImplementedError


class Parts:
    """The pools ``local`` and ``san``, and who lists their snapshots."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.tasks, self.table = SystemClock(), Tasks(), AllocationTable()
        capacity = Capacity(4, 1 << 32, 1 << 34)
        self.host = Host(NODE, NODE_UID, str(folder), str(folder), "wtst", ADDRESS, "lo", "weft/t", capacity)
        self.local, self.san = LayeredPool(self.host, "storage-1"), LayeredPool(self.host, "storage-2")
        self.news = asyncio.Event()
        self.pools = Pools(self.local, {"san": self.san}, self.clock, self.news)
        self.reporter = Reporter(NODE, StubServer(), self.clock, self.news)
        self.kept = self.make_kept()

    def make_kept(self) -> KeptSnapshots:
        """As a new agent has it."""
        state_dir = self.host.state_dir
        return KeptSnapshots(state_dir, self.pools, self.table, self.reporter, self.clock, self.tasks)

    async def settle(self) -> None:
        """Until what was begun has ended."""
        while self.tasks._tasks:
            await asyncio.gather(*self.tasks._tasks)

    def replace_kept(self, pool: LayeredPool, uid: str, **fields: object) -> None:
        one = pool.layers.kept[short_id(uid)]
        pool.layers.kept[short_id(uid)] = msgspec.structs.replace(one, **fields)
