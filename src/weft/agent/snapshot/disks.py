"""The disks whose chains are shortened: those of allocations, and volumes that nobody has. Each says when it may be worked on, and
how the content of a layer gets into the file above it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from weft.agent.image.cache import ImageCache
from weft.agent.snapshot.turns import DiskTurns, list_ids
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.snapshots import find_snapshots
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.layers import HasLayers, Layers
from weft.contracts.driver.snapshot import CanSnapshot
from weft.kinds.allocation import LOCAL, ROOT, list_disks
from weft.objects.errors import NotFound
from weft.objects.identity import Ref

_AT_REST = ("absent", "stopped", "suspended", "failed")  # a suspended one's memory doesn't say what its disks stand on


class LayeredDisk(Protocol):
    """``id``: its driver's; ``what``: for the log; ``together``: ids of the disks that nobody may step on meanwhile."""

    id: str
    what: str
    together: Collection[str]

    def may(self) -> bool:
        """Whether it may be worked on now."""

    async def find_layers(self) -> Layers | None:
        """Find the layers of its pool; None: it has none. Raises WeftError."""

    async def take(self, layers: Layers, layer: str) -> None:
        """Have the file above the layer take its content, and the layer go. Raises WeftError, OSError."""

    def describe(self) -> tuple[Ref, str] | None:
        """The workload that has it, and what it is of that; None: nobody has it."""


class AllocatedDisk:
    """``disk``: ROOT, or the volume's uid."""

    def __init__(
        self,
        state: AllocationState,
        disk: str,
        pools: Pools,
        table: AllocationTable,
        runtimes: Runtimes,
        images: ImageCache,
        turns: DiskTurns,
    ) -> None:
        self._state, self._disk, self._pools, self._table = state, disk, pools, table
        self._runtimes, self._images, self._turns = runtimes, images, turns
        ids = list_ids(state.local)
        self.id, self.what = ids[disk], state.local.what
        self.together: Collection[str] = ids.values()

    def may(self) -> bool:
        state, local, checkpoint = self._state, self._state.local, self._state.checkpoint
        spec, guest = local.spec, state.guest
        if state.released or local.deleting or state.superseded or not checkpoint.made or guest is None:
            return False
        if spec.role != "active" or checkpoint.migration is not None or self._table.states.get(local.uid) is not state:
            return False
        is_relocated = checkpoint.relocation is not None and checkpoint.relocation.state in ("copying", "there")
        if is_relocated or spec.storage is not None or find_snapshots(local, checkpoint):
            return False
        if self._disk == ROOT:
            if not kind_of(spec).has_root_disk:
                return False
        elif any(other is not state and self._disk in list_disks(other.local.spec) for other in self._table):
            return False
        if self._runs():
            return isinstance(self._runtimes.find(local), CanSnapshot)
        return guest.state in _AT_REST and self._turns.is_free(self.together)

    async def find_layers(self) -> Layers | None:
        driver = await self._pools.of(self._state.local.spec, self._disk)
        return driver.layers if isinstance(driver, HasLayers) else None

    async def take(self, layers: Layers, layer: str) -> None:
        await absorb(self._state, self._disk, self._runtimes, self._images, layers, layer)

    def describe(self) -> tuple[Ref, str]:
        name = _name_volume(self._state, self._disk)
        return self._state.local.spec.workload, f"volume {name}" if name else "the root disk"

    def _runs(self) -> bool:
        return _runs(self._state)


async def absorb(
    state: AllocationState, disk: str, runtimes: Runtimes, images: ImageCache, layers: Layers, layer: str
) -> None:
    """Have the file above the layer take its content, and the layer go. ``disk``: ROOT, or the uid of a volume that it has. Raises
    WeftError, OSError."""
    local = state.local
    id_ = list_ids(local)[disk]
    if any(one.format == "rbd" for one in await layers.list_layers(id_)):  # inside of the image: no copy
        await layers.forget_layer(id_, layer)
        return
    if _runs(state):
        runtime = runtimes.of(local)
        path = next((one.path for one in await layers.list_layers(id_) if one.id == layer), None)
        if path is None or not isinstance(runtime, CanSnapshot):
            raise NotFound(f"{local.what}: layer {layer} is not in its disk's chain")
        serial = ROOT_SERIAL if disk == ROOT else name_serial(_name_volume(state, disk))
        await runtime.snapshots.absorb(local.id, serial, path)
        await layers.forget_layer(id_, layer)
        return
    if disk != ROOT:
        await layers.absorb_layer(id_, layer, base=None, base_format="qcow2")
        return
    image = local.spec.image
    base = images.find(image.sha256) if image is not None else None
    if base is None:  # what is at the bottom of the chain isn't known
        raise NotFound(f"{local.what}: its image is not on this node")
    await layers.absorb_layer(id_, layer, base=base.disk, base_format=base.disk_format)


def _name_volume(state: AllocationState, disk: str) -> str:
    return next((volume.name for volume in state.local.spec.volumes if volume.uid == disk), "")


def _runs(state: AllocationState) -> bool:
    return state.guest is not None and state.guest.state == "running"


class UnattachedVolume:
    """A volume of this node's own pool that no allocation has. On storage that other nodes share, one of them may have it."""

    def __init__(self, uid: str, pools: Pools, table: AllocationTable, turns: DiskTurns) -> None:
        self.id, self.what = uid, f"volume {uid}"
        self.together: Collection[str] = (uid,)
        self._pools, self._table, self._turns = pools, table, turns

    def may(self) -> bool:
        if self._table.unexplained():  # it may be theirs
            return False
        taken = any(self.id in list_disks(state.local.spec) for state in self._table)
        return not taken and self._turns.is_free(self.together)

    async def find_layers(self) -> Layers | None:
        driver = await self._pools.find(LOCAL)
        if not isinstance(driver, HasLayers) or await driver.inspect(self.id) is None:
            return None
        return driver.layers

    async def take(self, layers: Layers, layer: str) -> None:
        await layers.absorb_layer(self.id, layer, base=None, base_format="qcow2")

    def describe(self) -> None:
        return None
