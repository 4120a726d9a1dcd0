"""Deletes disks of VMs that returned nodes kept and nobody reclaimed, once a backup has what they have.

Reads volumes and backups; deletes volumes. Woken by those, and by the time. A disk without a backup is the last copy: it stays
until people reclaim or delete it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Draft
from weft.informer.view import Changed, Item, View
from weft.kinds.backup import BACKUPS_BY_SUBJECT, BackupStatus
from weft.kinds.parts.snapshot.restored import ROOT
from weft.kinds.volume import VOLUME, VolumeMarks, describe_disk
from weft.objects.identity import object_key

SOURCE = "orphaned volumes"
KEPT_SECONDS = 7 * 86400.0
LONGEST_WAIT_SECONDS = 86400.0


class OrphanedVolumes:
    name = "orphaned volumes"
    kinds = (VOLUME.name,)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return (change.key,) if change.new is not None and change.new.marks(VolumeMarks).orphan is not None else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            volume = view.get(key)
            orphan = volume.marks(VolumeMarks).orphan if volume is not None else None
            if volume is None or orphan is None or volume.deleting:
                continue
            if (wait := orphan.since + KEPT_SECONDS - now) > 0 or not has_backup(view, volume):
                plan.later[key] = min(max(wait, 3600.0), LONGEST_WAIT_SECONDS)
                continue
            draft = Draft()
            draft.change(volume, deleting_since=now)
            said = f"nobody reclaimed {describe_disk(orphan)} in 7 days, and a backup has it"
            commit = draft.commit(key, [Event("Normal", "Expired", said, volume.envelope.ref, SOURCE)])
            if commit is not None:
                plan.commits.append(commit)
        return plan


def has_backup(view: View, volume: Item) -> bool:
    """Whether a backup has this disk, as it was before its node was lost, not the one that the VM got after it."""
    orphan = volume.marks(VolumeMarks).orphan
    assert orphan is not None
    kind, _, name = orphan.of.partition("/")
    found = view.find(BACKUPS_BY_SUBJECT, object_key(kind, volume.envelope.project, name))
    statuses = [one.status(BackupStatus) for one in found if not one.deleting]
    ready = [one for one in statuses if one.phase == "Ready" and one.workload_uid == orphan.workload_uid]
    whole = [one for one in ready if (orphan.volume or ROOT) in one.disks]
    return any(one.taken_at is not None and one.taken_at <= orphan.lost_at for one in whole)
