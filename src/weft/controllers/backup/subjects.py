"""What a backup policy is for now: what it names, and all that has a disk in the pool that it names. Reads the view."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec, list_disks
from weft.kinds.backup_policy import BackupPolicySpec
from weft.kinds.pool import POOL, PoolSpec
from weft.kinds.volume import VolumeStatus
from weft.objects.identity import object_key


def list_subjects(view: View, policy: Item) -> list[str]:
    """As KIND/NAME, each once."""
    spec = policy.spec(BackupPolicySpec)
    found = dict.fromkeys(spec.of)
    pool = view.get(object_key(POOL.name, None, spec.pool)) if spec.pool else None
    if pool is not None:
        storage = pool.spec(PoolSpec).id
        project = policy.envelope.project
        for kind in ("vm", "volume"):
            own = [item for item in view.of_kind(kind).values() if item.envelope.project == project]
            lying = [item for item in own if not item.deleting and _lies_in(view, item, storage)]
            found |= {f"{kind}/{item.envelope.name}": None for item in lying}
    return list(found)


def _lies_in(view: View, item: Item, storage: str) -> bool:
    """Whether it has a disk in this storage; of volumes only those that come with the disks of nothing else."""
    if item.envelope.kind == "volume":
        status = item.status(VolumeStatus)
        return status.pool_id == storage and (status.attached_to is None or status.attached_to.kind != "vm")
    disks = [list_disks(one.spec(AllocationSpec)) for one in view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)]
    return any(id_ == storage for one in disks for _, id_ in one.values())
