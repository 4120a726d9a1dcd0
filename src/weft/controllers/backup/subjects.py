"""Subjects of a backup policy now: what it names, all that has a disk in its pool, all of its project. Reads the view."""

from __future__ import annotations

from collections.abc import Iterator

from weft.informer.view import Item, View
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocationSpec, list_disks
from weft.kinds.backup import PROJECT, explain_encrypted, tests_backup
from weft.kinds.backup_policy import BackupPolicySpec
from weft.kinds.container import ContainerSpec
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.pool import POOL, PoolMarks
from weft.kinds.registry import BY_NAME
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VOLUME, VolumeSpec, VolumeStatus
from weft.objects.identity import object_key


def list_subjects(view: View, policy: Item) -> tuple[list[str], list[str]]:
    """The subjects as KIND/NAME, each once; and a sentence for each thing that a policy for a project or a pool leaves out."""
    spec, project = policy.spec(BackupPolicySpec), policy.envelope.project
    found, left_out = dict.fromkeys(spec.of), list[str]()
    pool = view.get(object_key(POOL.name, None, spec.pool)) if spec.pool else None
    for item in _list_all(view, project) if spec.whole_project or pool is not None else ():
        if spec.whole_project or (pool is not None and _lies_in(view, item, pool.marks(PoolMarks).id)):
            of = f"{item.envelope.kind}/{item.envelope.name}"
            if of not in found and (encrypted := _find_encrypted(view, item)):
                left_out.append(explain_encrypted(of, encrypted))
            else:
                found[of] = None
    if spec.whole_project and (found or left_out):
        found[f"{PROJECT}/{project}"] = None  # its objects
    return list(found), left_out


def _find_encrypted(view: View, item: Item) -> str:
    """The name of the first encrypted volume of it; "": it has none. Containers can't have any."""
    match BY_NAME[item.envelope.kind].snapshots:
        case "volume":
            return item.envelope.name if item.spec(VolumeSpec).encrypted else ""
        case "machine":
            for name in item.spec(VmSpec).volumes:
                volume = view.get(object_key(VOLUME.name, item.envelope.project, name))
                if volume is not None and volume.spec(VolumeSpec).encrypted:
                    return name
    return ""


def _list_all(view: View, project: str | None) -> Iterator[Item]:
    """Yield what has data in a project: VMs, containers with volumes, and volumes with data that neither has; not what boots a
    backup for as long as that is verified.
    """
    for kind in ("vm", "container", "volume"):
        for item in view.of_kind(kind).values():
            if item.envelope.project == project and not item.deleting and not tests_backup(item) and has_data(item):
                yield item


def has_data(item: Item) -> bool:
    match BY_NAME[item.envelope.kind].snapshots:
        case "volume":
            status = item.status(VolumeStatus)
            return status.node_uid is not None and status.attached_to is None
        case "mounts" if not item.spec(ContainerSpec).mounts:
            return False
    return item.status(WorkloadStatus).incarnation > 0  # it has had a place


def _lies_in(view: View, item: Item, storage: str) -> bool:
    """Whether it has a disk in this storage."""
    snapshots = BY_NAME[item.envelope.kind].snapshots
    if snapshots == "volume":
        return item.status(VolumeStatus).pool_id == storage
    specs = [one.spec(AllocationSpec) for one in view.find(ALLOCATIONS_BY_WORKLOAD, item.uid)]
    if snapshots == "mounts":
        return any(volume.pool_id == storage for spec in specs for volume in spec.volumes)
    return any(id_ == storage for spec in specs for _, id_ in list_disks(spec).values())
