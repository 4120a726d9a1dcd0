"""Records where each volume's data lies and which workload has it, and releases a deleted volume once its data is gone.

Reads volumes, allocations, nodes, snapshots; writes volume.status, makes Snapshots of what stands in a volume that goes back to
another one, and releases the finalizer "volume". Woken by any of those. The node
removes the data: the API server's answer to its reports names deleted volumes, and its reports list the volumes that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.volume.restore import plan_data
from weft.controllers.volume.trim import plan_trim
from weft.informer.commit import Commit, Draft, delete, edit, put, unchanged
from weft.informer.quotas import read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.informer.volume_locations import find_copies, find_data, find_strays
from weft.kinds.allocation import ALLOCATIONS_BY_VOLUME, LOCAL, AllocationReport, AllocationSpec, has_ended_for_good
from weft.kinds.node import NODES_BY_UID, NODES_BY_VOLUME, NodeReport, NodeStatus
from weft.kinds.parts.snapshot.volume_work import TrimReport, VolumeReport
from weft.kinds.snapshot import SNAPSHOTS_BY_UID, SnapshotStatus, workload_key
from weft.kinds.volume import (
    NODE_DELETED,
    VOLUMES_BY_HOME,
    VOLUMES_BY_SOURCE,
    VOLUMES_BY_UID,
    VolumeMarks,
    VolumeSpec,
    VolumeStatus,
    VolumeTrim,
    describe_deleted,
    is_coming,
    pool_of,
    read_restore,
)
from weft.objects.quantity import format_bytes

FINALIZER = "volume"
SOURCE = "volumes"
CHECK_EVERY_SECONDS = 1.0


class Volumes:
    """``find_silent`` names the nodes that have not reported since a restore."""

    name = "volumes"
    kinds = ("volume", "allocation", "node", "snapshot")

    def __init__(self, find_silent: Callable[[], list[str]]) -> None:
        self._find_silent = find_silent

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "volume":
                return (change.key,)
            case "allocation":
                if has_changed(change, _volume_relevant_state):
                    uids = {uid for item in (change.old, change.new) if item is not None for uid in _volumes_of(item)}
                    return [item.key for uid in uids for item in view.find(VOLUMES_BY_UID, uid)]
            case "snapshot":
                if has_changed(change, _volume_relevant_snapshot_state):
                    found = view.find(VOLUMES_BY_SOURCE, change.key)
                    of = view.of_kind("volume").get(workload_key(change.item))  # None: it is of a VM or a container
                    return [item.key for item in (*found, of) if item is not None]
            case "node":
                items = [item for item in (change.old, change.new) if item is not None]
                keys: dict[str, None] = {}
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).volumes)):
                    uids = {uid for item in items for uid in item.report(NodeReport).volumes}
                    keys |= {item.key: None for uid in sorted(uids) for item in view.find(VOLUMES_BY_UID, uid)}
                if has_changed(change, _list_reports):
                    uids = {one.uid for item in items for one in _list_reports(item)}
                    keys |= {item.key: None for uid in sorted(uids) for item in view.find(VOLUMES_BY_UID, uid)}
                if has_changed(change, lambda item: item.report(NodeReport).snapshots):
                    uids = {one.uid for item in items for one in item.report(NodeReport).snapshots}
                    sources = [one.key for uid in sorted(uids) for one in view.find(SNAPSHOTS_BY_UID, uid)]
                    keys |= {item.key: None for key in sources for item in view.find(VOLUMES_BY_SOURCE, key)}
                if has_changed(change, lambda item: (item.uid, item.status(NodeStatus).phase == "Ready")):
                    # A home that is ready again may turn out not to have the data.
                    homes = {item.uid for item in items}
                    keys |= {item.key: None for uid in sorted(homes) for item in view.find(VOLUMES_BY_HOME, uid)}
                return keys
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        volumes = [volume for key in keys if (volume := view.get(key)) is not None]
        waiting = {volume.key for volume in volumes if volume.deleting or is_astray(view, volume)}
        silent = bool(waiting) and bool(self._find_silent())
        later = dict.fromkeys(waiting, CHECK_EVERY_SECONDS) if silent else {}
        commits = [commit for volume in volumes if (commit := plan_volume(view, volume, silent, now)) is not None]
        return Plan(commits, later)


def is_astray(view: View, volume: Item) -> bool:
    """Whether its data isn't where its status has it, and is elsewhere."""
    return bool(_find_astray(view, volume, volume.status(VolumeStatus)))


def _find_astray(view: View, volume: Item, status: VolumeStatus) -> Sequence[Item]:
    """The nodes that have its data, though its status names another node, or none yet: a restored store may be older than the
    volume's first use."""
    local = pool_of(volume.spec(VolumeSpec), status) == LOCAL
    if status.node_uid is not None:
        return find_strays(view, volume.uid, status.node_uid) if local else ()
    is_chosen = local and not volume.deleting
    return find_data(view, volume.uid) if is_chosen else view.find(NODES_BY_VOLUME, volume.uid)


def plan_volume(view: View, volume: Item, silent: bool, now: float) -> Commit | None:
    """Write a volume's status if it changes; remove a deleted volume whose data is gone. ``silent``: some nodes have not
    reported since a restore."""
    allocations = view.find(ALLOCATIONS_BY_VOLUME, volume.uid)
    former = volume.status(VolumeStatus)
    ended = {item.spec(AllocationSpec).workload.uid for item in allocations if _has_ended(item)}
    specs = [item.spec(AllocationSpec) for item in allocations]
    status = fold_volume(former, specs, volume.deleting, volume.uid, ended)
    local = pool_of(volume.spec(VolumeSpec), status) == LOCAL
    astray = _find_astray(view, volume, status) if not allocations else ()
    holders = astray if not (local and silent) else ()
    if status.pool_id and not allocations and not _is_there(view, volume, status):
        # Others may share that storage.
        holders = [node for node in view.find(NODES_BY_VOLUME, volume.uid) if _shares(node, status.pool_id)][:1]
    if len(holders) == 1 or (holders and (volume.deleting or not local)):
        # Between several nodes that aren't its home people must choose.
        status.node, status.node_uid = holders[0].envelope.name, holders[0].uid
    explained = {item.spec(AllocationSpec).node_uid for item in allocations}
    undecided = local and len(astray) > 1 and not volume.deleting
    lists_copies = local and (status.node_uid is not None or undecided)  # one alone will be its home
    status.copies = find_copies(view, volume.uid, status.node_uid, explained) if lists_copies else []
    step = plan_data(view, volume, status, now)
    plan_trim(view, volume, status, now)
    if status.phase == "Available" and is_coming(volume, status):
        status.phase = "Restoring"
    if status.phase == "Available" and volume.marks(VolumeMarks).orphan is not None:
        status.phase = "Orphaned"
    _note_home(status, is_there=status.node_uid is None or _is_there(view, volume, status))
    is_free = not allocations and status.order is None
    if volume.deleting and is_free and not silent and not _has_data(view, volume, status):
        envelope = edit(volume)
        envelope.finalizers = [name for name in envelope.finalizers if name != FINALIZER]
        if envelope.finalizers:
            return (
                Commit(volume.key, [put(envelope)], [unchanged(volume)])
                if envelope.finalizers != volume.envelope.finalizers
                else None
            )
        event = Event("Normal", "Deleted", f"{volume.envelope.name} was deleted", volume.envelope.ref, SOURCE)
        return Commit(volume.key, [delete(volume)], [unchanged(volume)], [event])
    draft = Draft()
    if status != former:
        draft.change(volume, status=status)
        draft.preconditions += [unchanged(item) for item in step.needs]
    if step.make is not None:
        draft.make(step.make)
        if (quota := read_quota(view, volume.envelope.project)) is not None:
            quota.guard(draft)
    return draft.commit(volume.key, _make_events(volume, former, status, undecided))


def _note_home(status: VolumeStatus, *, is_there: bool) -> None:
    """Whether its data can be had: not while the node that has it was deleted."""
    if not is_there and status.phase in ("Available", "Orphaned"):
        status.phase, status.reason = "Unavailable", NODE_DELETED
        status.message = describe_deleted(status.node)
    elif status.reason == NODE_DELETED:
        status.reason = status.message = ""


def _make_events(volume: Item, former: VolumeStatus, status: VolumeStatus, undecided: bool) -> list[Event]:
    """``undecided``: several nodes have its data, and its home isn't one of them."""
    events = _make_restore_events(volume, former, status)
    if status.trimmed is not None and status.trimmed != former.trimmed:
        events.append(_make_trim_event(volume, status.trimmed))
    if former.node_uid not in (None, status.node_uid) and status.attached_to is None:
        message = f"the data is on {status.node}, not on {former.node} where it was expected"
        events.append(Event("Warning", "DataFound", message, volume.envelope.ref, SOURCE))
    if set(status.copies) - set(former.copies):
        names = ", ".join(status.copies)
        message = (
            f"unexplained data of this volume is on {names}; no workload gets the volume until only one of them has data"
            if undecided
            else f"unexplained data of this volume is also on {names}; the data on {status.node} is used"
        )
        events.append(Event("Warning", "CopyFound", message, volume.envelope.ref, SOURCE))
    return events


def _make_trim_event(volume: Item, result: VolumeTrim) -> Event:
    if result.reason:
        return Event("Warning", "NotTrimmed", f"it was not trimmed: {result.message}", volume.envelope.ref, SOURCE)
    message = f"its pool got back {format_bytes(result.freed)}"
    return Event("Normal", "Trimmed", message, volume.envelope.ref, SOURCE)


def _make_restore_events(volume: Item, former: VolumeStatus, status: VolumeStatus) -> list[Event]:
    about, asked = volume.envelope.ref, read_restore(volume)
    if status.restored != former.restored and asked is not None:
        if status.reason:
            return [Event("Warning", "NotRestored", status.message, about, SOURCE)]
        return [Event("Normal", "Restored", f"its data is that of snapshot/{asked.snapshot}", about, SOURCE)]
    if status.reason and status.reason != former.reason:
        told = "Unavailable" if status.reason == NODE_DELETED else "NotMade"
        return [Event("Warning", told, status.message, about, SOURCE)]
    return []


def _list_reports(node: Item) -> list[VolumeReport | TrimReport]:
    orders = node.report(NodeReport).orders
    return [*orders.volume, *orders.trim]


def _volume_relevant_snapshot_state(snapshot: Item) -> object:
    """The parts of a snapshot that concern the volumes that come from it, or whose content it is to keep."""
    return snapshot.uid, snapshot.deleting, snapshot.status(SnapshotStatus).phase


def fold_volume(
    former: VolumeStatus,
    allocations: Sequence[AllocationSpec],
    deleting: bool,
    uid: str = "",
    ended: Collection[str] = (),
) -> VolumeStatus:
    """A volume's status: its data stays where it was first used, until it migrates with its workload. Workloads whose uid is in
    ``ended`` have ended for good and hold it no more."""
    holders = [spec for spec in allocations if spec.role in ("active", "source")]
    holder = max(holders, key=lambda spec: (spec.workload.uid not in ended, spec.incarnation), default=None)
    held = holder is not None and holder.workload.uid not in ended
    status = msgspec.structs.replace(
        former,
        attached_to=holder.workload if holder is not None and held else None,
        phase="Deleting" if deleting else "Available",
    )
    if holder is not None:
        status.phase = "Attached" if held else status.phase
        if status.node_uid is None or holder.role == "active":
            status.node, status.node_uid = holder.node, holder.node_uid
            at = next((one for one in holder.volumes if one.uid == uid), None)
            status.pool, status.pool_id = (at.pool, at.pool_id) if at is not None else ("", "")
            status.size = at.size if at is not None else 0
    return status


def _has_ended(allocation: Item) -> bool:
    return has_ended_for_good(allocation.spec(AllocationSpec), allocation.report(AllocationReport))


def _volume_relevant_state(allocation: Item) -> object:
    """The parts of an allocation that concern its volumes."""
    spec = allocation.spec(AllocationSpec)
    return allocation.uid, spec.role, spec.volumes, _has_ended(allocation)


def _volumes_of(allocation: Item) -> list[str]:
    return [volume.uid for volume in allocation.spec(AllocationSpec).volumes]


def _is_there(view: View, volume: Item, status: VolumeStatus) -> bool:
    """Whether the node that had it last still exists."""
    return status.node_uid is not None and bool(view.find(NODES_BY_UID, status.node_uid))


def _shares(node: Item, storage: str) -> bool:
    return any(pool.id == storage for pool in node.report(NodeReport).pools)


def _has_data(view: View, volume: Item, status: VolumeStatus) -> bool:
    """Whether the node where the data lies still reports it."""
    if status.node_uid is None:
        return False
    nodes = view.find(NODES_BY_UID, status.node_uid)
    return bool(nodes) and volume.uid in nodes[0].report(NodeReport).volumes
