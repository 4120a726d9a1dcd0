"""Takes the snapshots that a schedule asks for of a VM or a volume, and deletes the oldest ones that are too many.

Reads VMs, volumes, snapshots and quotas; makes Snapshots, deletes those that a schedule made, and writes the condition
Snapshots where its quota refuses one. Woken by any of those, and by the time. People's own snapshots are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.quotas import read_quota
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule
from weft.kinds.parts.snapshot.verbs import has_disks, has_memory
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import (
    SNAPSHOT,
    SNAPSHOTS_BY_WORKLOAD,
    SnapshotMarks,
    SnapshotSpec,
    SnapshotStatus,
    workload_key,
)
from weft.kinds.vm import VmSpec
from weft.kinds.volume import VolumeSpec, VolumeStatus, is_coming
from weft.objects.envelope import Condition, Envelope, set_condition
from weft.objects.identity import cut_name, object_key

SOURCE = "scheduled snapshots"
RETRY_SECONDS = 60.0  # while the quota is full
LOOK_LEAST_SECONDS, LOOK_MOST_SECONDS = 60.0, 600.0  # the clock may be set meanwhile
EXCEEDED, CLOCK_SET_BACK = "quotaExceeded", "clockSetBack"  # reasons of the condition Snapshots


class ScheduledSnapshots:
    name = "scheduled snapshots"
    kinds = ("vm", "volume", "snapshot", "quota")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "vm" | "volume":
                if has_changed(change, _schedule_relevant_state):
                    return (change.key,)
            case "snapshot":
                is_own = change.item.marks(SnapshotMarks).automatic == "schedule"
                if is_own and has_changed(change, lambda item: (item.uid, item.status(SnapshotStatus).phase)):
                    return (workload_key(change.item),)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            workload = view.get(key)
            schedule = _read_schedule(workload) if workload is not None else None
            if workload is None or schedule is None or workload.deleting:
                continue
            commit, wait = plan_schedule(view, workload, schedule, now)
            plan.later[key] = min(wait, LOOK_MOST_SECONDS, max(LOOK_LEAST_SECONDS, schedule.every / 60))
            if commit is not None:
                plan.commits.append(commit)
        return plan


def plan_schedule(view: View, workload: Item, schedule: SnapshotSchedule, now: float) -> tuple[Commit | None, float]:
    """The deletion of those that are too many, or else the next snapshot if it is due; and in how many seconds to look again."""
    own = sorted(list_scheduled(view, workload), key=lambda item: _find_rank(item, now), reverse=True)
    draft = Draft()
    if surplus := find_surplus(own, schedule.keep):
        for item in surplus:
            draft.change(item, deleting_since=now)
        return draft.commit(workload.key), 1.0
    if _note_clock(draft, workload, own, now):
        return draft.commit(workload.key), schedule.every
    last = _find_last(workload, own, now)
    wait = 0.0 if last is None else last + schedule.every - now
    busy = any(item.status(SnapshotStatus).phase in ("Pending", "Taking") and not item.deleting for item in own)
    if wait > 0 or busy or not _is_able(workload):
        return None, wait if wait > 0 else RETRY_SECONDS
    made = _make(view, workload, schedule, now)
    quota = read_quota(view, workload.envelope.project)
    excess = (
        "" if quota is None else quota.describe_excess(made.kind, SnapshotSpec(of="vm/-"), workload.envelope.creator)
    )
    _note_excess(draft, workload, excess, now)
    if excess:
        events = [Event("Warning", "SnapshotRefused", excess, workload.envelope.ref, SOURCE)] if draft.writes else []
        return draft.commit(workload.key, events), RETRY_SECONDS
    if quota is not None:
        quota.guard(draft)
    draft.make(made)
    return draft.commit(workload.key), schedule.every


def _find_rank(item: Item, now: float) -> tuple[bool, float]:
    """The order of snapshots, the newest highest. One that has a time ahead was taken before the clock was set back."""
    at = item.envelope.created_at
    return at <= now, at


def _note_clock(draft: Draft, workload: Item, own: Sequence[Item], now: float) -> bool:
    """Note when it was first seen that a snapshot has a time ahead: the next one is taken an interval after that, since nobody
    knows when that one was taken. Forget it once none has. Whether there was something to note."""
    ahead = next((item for item in own if item.envelope.created_at > now), None)
    said = workload.envelope.condition("Snapshots")
    is_noted = said is not None and said.reason == CLOCK_SET_BACK
    if ahead is None and not is_noted:
        return False
    if ahead is not None and said is not None and (said.reason == EXCEEDED or (is_noted and said.since <= now)):
        return False
    message = (
        f"snapshot/{ahead.envelope.name} has a time ahead of the clock, which was set back: the next is taken an interval later"
        if ahead is not None
        else ""
    )
    status, reason = ("Unknown", CLOCK_SET_BACK) if ahead is not None else ("True", "Scheduled")
    envelope = edit(workload)
    noted = Condition("Snapshots", status, reason, message, now, workload.envelope.generation)  # type: ignore[arg-type]
    envelope.conditions = [*(one for one in envelope.conditions if one.type != noted.type), noted]
    draft.writes.append(put(envelope))
    draft.preconditions.append(unchanged(workload))
    return True


def _find_last(workload: Item, own: Sequence[Item], now: float) -> float | None:
    """When the newest one was taken, or it was noticed that the clock had been set back; None: neither was."""
    said = workload.envelope.condition("Snapshots")
    noticed = [said.since] if said is not None and said.reason == CLOCK_SET_BACK else []
    return max([*noticed, *(at for item in own if (at := item.envelope.created_at) <= now)], default=None)


def _note_excess(draft: Draft, workload: Item, excess: str, now: float) -> None:
    """Write the condition Snapshots if the quota refuses one, and once it refuses none any more."""
    said = workload.envelope.condition("Snapshots")
    if not excess and (said is None or said.reason == CLOCK_SET_BACK):
        return
    generation, envelope = workload.envelope.generation, edit(workload)
    condition = Condition("Snapshots", "True", "Scheduled", "", now, generation)
    if excess:
        condition = Condition("Snapshots", "False", EXCEEDED, f"no snapshot is taken: {excess}", now, generation)
    if set_condition(envelope, condition):
        draft.writes.append(put(envelope))
        draft.preconditions.append(unchanged(workload))


def list_scheduled(view: View, workload: Item) -> list[Item]:
    """The snapshots that the workload's schedule made, and that are not being deleted."""
    return [
        item
        for item in view.find(SNAPSHOTS_BY_WORKLOAD, workload.key)
        if item.marks(SnapshotMarks).automatic == "schedule"
        and item.status(SnapshotStatus).workload_uid in ("", workload.uid)
        and not item.deleting
    ]


def find_surplus(newest_first: Sequence[Item], keep: int) -> list[Item]:
    """Those that go: all but the newest ready ones, and failed ones that are older than the newest ready one. Those with a time
    ahead are the oldest: none of them pushes out one that was taken by a clock that is right."""
    ready = [item for item in newest_first if item.status(SnapshotStatus).phase in ("Ready", "Unavailable")]
    failed = [item for item in newest_first if item.status(SnapshotStatus).phase == "Failed"]
    since = ready[0].envelope.created_at if ready else 0.0
    old = [item for item in failed if item.envelope.created_at < since]
    return [*ready[keep:], *old, *[item for item in failed if item not in old][keep:]]


def _make(view: View, workload: Item, schedule: SnapshotSchedule, now: float) -> Envelope:
    of = workload.envelope
    made, marks = SnapshotSpec(of=f"{of.kind}/{of.name}"), SnapshotMarks(automatic="schedule")
    if _is_machine(workload):
        spec, status = workload.spec(VmSpec), workload.status(WorkloadStatus)
        made.memory = schedule.memory and has_memory(status.phase, spec.gpus)
        marks.image = spec.image
    return SNAPSHOT.make(_name(view, workload, now), made, now, project=of.project, creator=of.creator, marks=marks)


def _name(view: View, workload: Item, now: float) -> str:
    """The workload's name with the time in UTC; a free one."""
    of = workload.envelope
    for seconds in range(60):
        at = f"{datetime.fromtimestamp(now + seconds, UTC):%Y%m%d-%H%M%S}"
        name = cut_name(of.name, f"-{at}")
        if view.get(object_key(SNAPSHOT.name, of.project, name)) is None:
            break
    return name


def _is_machine(workload: Item) -> bool:
    return BY_NAME[workload.envelope.kind].snapshots == "machine"


def _read_schedule(workload: Item) -> SnapshotSchedule | None:
    return workload.spec(VmSpec).snapshots if _is_machine(workload) else workload.spec(VolumeSpec).snapshots


def _is_able(workload: Item) -> bool:
    """Whether a snapshot can be taken of it now; what a machine has open is part of snapshots of that machine."""
    if _is_machine(workload):
        status = workload.status(WorkloadStatus)
        return has_disks(status.phase, status.node)
    volume = workload.status(VolumeStatus)
    holder = volume.attached_to
    bars = holder is not None and BY_NAME[holder.kind].snapshots == "machine"
    return volume.node_uid is not None and not is_coming(workload, volume) and not bars


def _schedule_relevant_state(workload: Item) -> object:
    return workload.uid, workload.deleting, _read_schedule(workload), _is_able(workload)
