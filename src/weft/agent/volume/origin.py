"""Origin of a VM that begins from a snapshot: what it takes from it, its disks, and for its first guest the memory and a new
identity."""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from weft.agent.state.allocation import LocalAllocation
from weft.agent.template.copied import note_copy, write_wait
from weft.agent.volume.pools import Pools
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.layers import HasLayers, KeptSnapshot, Layers
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import ROOT, list_disks
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin
from weft.objects.errors import NotFound
from weft.objects.identity import short_id


class MadeDisks(Protocol):
    """The disks that the steps before the start have made."""

    @property
    def root(self) -> VolumeFacts | None: ...

    @property
    def volumes(self) -> list[VolumeFacts]: ...


COLD_HINT = "restore it without its memory: --no-memory"


def begins_from_memory(origin: AllocatedOrigin | None) -> bool:
    """Whether its disks stay as large as the machine in the memory knows them. They grow once it runs."""
    return origin is not None and origin.memory


async def clone_missing(
    pools: Pools, local: LocalAllocation, origin: AllocatedOrigin | None, disk: str
) -> VolumeFacts | None:
    """Make a disk, ROOT or a volume by uid, as ``origin`` has it. None: it is there, or comes from elsewhere. Raises NotFound
    (``snapshotGone``), DriverFailed."""
    if origin is None or origin.generation != 0 or disk not in origin.disks:
        return None
    id_ = local.id if disk == ROOT else disk
    if await pools.inspect(local.spec, id_, disk) is not None:
        return None
    layers, _ = await find_kept(pools, local, origin, disk)
    return await layers.clone(id_, short_id(origin.snapshot), origin.disks[disk])


async def find_kept(
    pools: Pools, local: LocalAllocation, origin: AllocatedOrigin, disk: str
) -> tuple[Layers, KeptSnapshot]:
    """Find what the pool of a disk keeps for it. Raises NotFound (``snapshotGone``), DriverFailed."""
    driver, id_ = await pools.of(local.spec, disk), short_id(origin.snapshot)
    kept = [one for one in await driver.layers.list_kept() if one.id == id_] if isinstance(driver, HasLayers) else []
    if not isinstance(driver, HasLayers) or not kept or origin.disks[disk] not in kept[0].disks:
        name = "root disk" if disk == ROOT else f"volume {next(v.name for v in local.spec.volumes if v.uid == disk)}"
        raise NotFound(
            f"{local.what}: snapshot/{origin.name} of its {name} is not in this node's storage pool "
            f"{list_disks(local.spec)[disk][0]}",
            reason="snapshotGone",
            hint="restore another snapshot",
        )
    return driver.layers, kept[0]


async def find_memory(pools: Pools, local: LocalAllocation, origin: AllocatedOrigin) -> str:
    """The path of the memory that it goes on from. Raises NotFound (``snapshotGone``), DriverFailed."""
    layers, kept = await find_kept(pools, local, origin, ROOT)
    if not kept.memory_bytes:
        raise NotFound(
            f"{local.what}: snapshot/{origin.name} has no memory in this node's storage pool {local.spec.pool}",
            reason="snapshotGone",
            hint=COLD_HINT,
        )
    return layers.memory_path(kept.id)


async def begin_from(
    pools: Pools, local: LocalAllocation, made: MadeDisks, origin: AllocatedOrigin, plan: GuestPlan
) -> GuestPlan:
    """The plan of its first guest. Raises NotFound (``snapshotGone``), DriverFailed."""
    if origin.identity:
        ref = local.spec.workload
        plan = replace(plan, identity=Identity(ref.name, ref.uid.replace("-", "")))
    if not origin.memory:
        return plan
    if origin.identity:
        plan = replace(plan, setup=write_wait(local.spec.nics, plan))
    sizes = {facts.path: facts.size_bytes for facts in (made.root, *made.volumes) if facts is not None}
    disks = [replace(disk, size_bytes=sizes.get(disk.path, disk.size_bytes)) for disk in plan.disks]
    note = note_copy(local.spec.workload, f"the memory of snapshot/{origin.name}", 0.0)
    return replace(plan, memory=await find_memory(pools, local, origin), disks=disks, console_note=note)
