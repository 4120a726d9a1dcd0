"""What a backup policy is for now: what it names, and all that has a disk in the pool that it names. Reads the view."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec, list_disks
from weft.kinds.backup_policy import BackupPolicySpec
from weft.kinds.pool import POOL, PoolSpec
from weft.objects.identity import object_key


def list_subjects(view: View, policy: Item) -> list[str]:
    """As KIND/NAME, each once."""
    spec = policy.spec(BackupPolicySpec)
    found = dict.fromkeys(spec.of)
    pool = view.get(object_key(POOL.name, None, spec.pool)) if spec.pool else None
    if pool is not None:
        storage = pool.spec(PoolSpec).id
        project = policy.envelope.project
        own = [item for item in view.of_kind("vm").values() if item.envelope.project == project and not item.deleting]
        found |= {f"vm/{item.envelope.name}": None for item in own if _lies_in(view, item, storage)}
    return list(found)


def _lies_in(view: View, workload: Item, storage: str) -> bool:
    """Whether a disk of its lies in this storage."""
    disks = [list_disks(item.spec(AllocationSpec)) for item in view.find(ALLOCATIONS_BY_WORKLOAD, workload.uid)]
    return any(id_ == storage for one in disks for _, id_ in one.values())
