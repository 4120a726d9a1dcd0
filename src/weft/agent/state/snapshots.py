"""The snapshots that an allocation needs: those being taken of it, and the one that it begins from or goes back to. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from weft.agent.state.allocation import Checkpoint, LocalAllocation, TakenDisk, Taking
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import ROOT, AllocationSpec
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot, GroupTurn, SnapshotReport
from weft.objects.identity import short_id


def find_snapshots(local: LocalAllocation, checkpoint: Checkpoint) -> set[str]:
    """The uids of these snapshots."""
    found = {one.uid for one in local.spec.snapshots}
    if checkpoint.taking is not None:
        found.add(checkpoint.taking.snapshot.uid)
    restore = find_restore(local.spec, checkpoint)
    if restore is not None:
        found.add(restore.snapshot)
        found.update({restore.keeps.uid} if restore.keeps is not None else ())
    origin = local.spec.origin
    if origin is not None and (find_beginning(local.spec, checkpoint) or checkpoint.run == "starting"):
        found.add(origin.snapshot)  # its guest may be loading the memory
    return found


def find_restore(spec: AllocationSpec, checkpoint: Checkpoint) -> AllocatedOrigin | None:
    """The restore in place that is under way, or that its spec asks for."""
    if checkpoint.restoring is not None:
        return checkpoint.restoring
    origin = spec.origin
    return origin if origin is not None and origin.generation not in (0, checkpoint.restored) else None


def find_beginning(spec: AllocationSpec, checkpoint: Checkpoint) -> AllocatedOrigin | None:
    """The origin of its next start, if no guest has begun from that."""
    origin = spec.origin
    if origin is None or spec.role != "active" or checkpoint.begun_from == origin.generation:
        return None
    return origin if origin.generation in (0, checkpoint.restored) else None


def note_beginning(checkpoint: Checkpoint, spec: AllocationSpec, guest: GuestFacts) -> Checkpoint:
    """``checkpoint`` with the fact that its guest has begun from its origin: a restore leaves no guest."""
    origin = find_beginning(spec, checkpoint) if guest.state != "absent" else None
    return checkpoint if origin is None else replace(checkpoint, begun_from=origin.generation)


def find_wanted(spec: AllocationSpec, checkpoint: Checkpoint) -> AllocatedSnapshot | None:
    """The next snapshot to take."""
    over = {report.uid for report in checkpoint.taken}
    return next((one for one in spec.snapshots if one.uid not in over and one.turn in ("", "hold")), None)


def find_turn(local: LocalAllocation, uid: str) -> GroupTurn:
    """The turn that a group's member has come to. One that is wanted no more doesn't count."""
    wanted = next((one for one in local.spec.snapshots if one.uid == uid), None)
    return wanted.turn if wanted is not None and not local.deleting else "drop"


def find_taken(checkpoint: Checkpoint, spec: AllocationSpec) -> list[SnapshotReport]:
    """Find what became of the spec's snapshots; the server knows what became of others."""
    wanted = {one.uid for one in spec.snapshots}
    if spec.origin is not None and spec.origin.keeps is not None:
        wanted.add(spec.origin.keeps.uid)
    return [report for report in checkpoint.taken if report.uid in wanted]


def begin_taking(spec: AllocationSpec, snapshot: AllocatedSnapshot, *, live: bool) -> Taking:
    """The state with which a snapshot begins."""
    disks = {ROOT: TakenDisk(spec.pool, spec.pool_id)}
    disks |= {volume.uid: TakenDisk(volume.pool, volume.pool_id, volume.name) for volume in spec.volumes}
    return Taking(snapshot, disks, live)


def name_layer(snapshot: str, disk: str) -> str:
    """The id of the layer that a disk gets by the snapshot with this uid."""
    return short_id(f"{snapshot}/{disk}")
