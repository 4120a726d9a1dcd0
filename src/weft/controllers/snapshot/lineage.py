"""Find the snapshot that another one stands on: the newest of the workload, or the one that the workload went back to since. Pure.

The order of a snapshot writes it down. When a snapshot goes, its parent takes its place (decision 0227).
"""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_restoring
from weft.kinds.parts.snapshot.verbs import RESTORED
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SNAPSHOTS_BY_WORKLOAD_UID, SnapshotStatus
from weft.kinds.vm import VmActions
from weft.kinds.volume import VolumeStatus, read_restore
from weft.objects.identity import object_key


def find_restore(workload: Item, place: Item | None) -> tuple[int, str]:
    """The last restore in place that is done: its generation, and the name of the snapshot. 0 if there was none."""
    form = BY_NAME[workload.envelope.kind].snapshots
    if form == "volume":
        return _find_volume_restore(workload)
    if form != "machine":
        return 0, ""
    if place is not None:
        spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
        if spec.origin is not None and spec.origin.generation and not is_restoring(spec, report):
            return spec.origin.generation, spec.origin.name
    asked, told = workload.actions(VmActions).restore, workload.envelope.condition(RESTORED)
    if asked is None or told is None or told.status != "True" or told.generation < asked.generation:
        return 0, ""
    return asked.generation, asked.snapshot  # its place is another one since


def _find_volume_restore(source: Item) -> tuple[int, str]:
    asked, status = read_restore(source), source.status(VolumeStatus)
    if asked is None or status.restored < asked.generation or status.reason:
        return 0, ""
    return asked.generation, asked.snapshot


def find_parent(view: View, workload: Item, place: Item | None, uid: str = "") -> str:
    """The name of the snapshot that the workload's disks stand on, but the one with this ``uid``; "" if there is none."""
    stand = [
        (status.restored, status.taken_at or 0.0, other.envelope.name)
        for other in view.find(SNAPSHOTS_BY_WORKLOAD_UID, workload.uid)
        if other.uid != uid and not other.deleting and (status := other.status(SnapshotStatus)).phase == "Ready"
    ]
    restored, _, newest = max(stand, default=(0, 0.0, ""))
    generation, name = find_restore(workload, place)
    if restored >= generation:
        return newest
    source = view.get(object_key("snapshot", workload.envelope.project, name))
    if source is None or source.status(SnapshotStatus).workload_uid != workload.uid:
        return ""
    return source.status(SnapshotStatus).parent if source.deleting else name


def list_children(view: View, snapshot: Item) -> list[Item]:
    """The snapshots that stand on it."""
    name, workload_uid = snapshot.envelope.name, snapshot.status(SnapshotStatus).workload_uid
    others = view.find(SNAPSHOTS_BY_WORKLOAD_UID, workload_uid) if workload_uid else ()
    return [one for one in others if one.uid != snapshot.uid and one.status(SnapshotStatus).parent == name]
