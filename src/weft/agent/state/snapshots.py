"""The snapshots that an allocation needs: those being taken of it, and the one that it begins from or goes back to. Pure."""

from __future__ import annotations

from weft.agent.state.allocation import Checkpoint, LocalAllocation, TakenDisk, Taking
from weft.kinds.allocation import ROOT, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot, SnapshotReport
from weft.objects.identity import short_id


def find_snapshots(local: LocalAllocation, checkpoint: Checkpoint) -> set[str]:
    """The uids of these snapshots."""
    origin, found = local.spec.origin, {one.uid for one in local.spec.snapshots}
    if checkpoint.taking is not None:
        found.add(checkpoint.taking.snapshot.uid)
    if origin is None:
        return found
    if origin.generation == 0:
        begun = checkpoint.run not in ("new", "starting")
    else:
        begun = local.report.restored == origin.generation
    if not begun:
        found.add(origin.snapshot)
        found.update({origin.keeps.uid} if origin.keeps is not None else ())
    return found


def find_wanted(spec: AllocationSpec, checkpoint: Checkpoint) -> AllocatedSnapshot | None:
    """The next snapshot to take."""
    over = {report.uid for report in checkpoint.taken}
    return next((one for one in spec.snapshots if one.uid not in over), None)


def find_taken(checkpoint: Checkpoint, spec: AllocationSpec) -> list[SnapshotReport]:
    """What became of the spec's snapshots; the server knows what became of others."""
    wanted = {one.uid for one in spec.snapshots}
    return [report for report in checkpoint.taken if report.uid in wanted]


def begin_taking(spec: AllocationSpec, snapshot: AllocatedSnapshot, *, live: bool) -> Taking:
    """The state with which a snapshot begins."""
    disks = {ROOT: TakenDisk(spec.pool, spec.pool_id)}
    disks |= {volume.uid: TakenDisk(volume.pool, volume.pool_id, volume.name) for volume in spec.volumes}
    return Taking(snapshot, disks, live)


def name_layer(snapshot: str, disk: str) -> str:
    """The id of the layer that a disk gets by the snapshot with this uid."""
    return short_id(f"{snapshot}/{disk}")
