"""Deletes volumes that were to begin with a new VM from a snapshot, and never will: the VM was deleted before it had begun.

Reads volumes, VMs, snapshots; deletes volumes. Woken by those. A volume that has data, or that people created, is never deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.vm import VMS_BY_ORIGIN, origin_keys
from weft.kinds.volume import VOLUMES_BY_SOURCE, VolumeStatus, read_origin
from weft.objects.identity import object_key

SOURCE = "unbegun volumes"
GRACE_SECONDS = 60.0  # a volume may be created before what begins from it


class UnbegunVolumes:
    name = "unbegun volumes"
    kinds = ("volume", "vm", "snapshot")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "volume":
                return (change.key,)
            case "vm" if change.new is None:
                return [item.key for key in origin_keys(change.item) for item in view.find(VOLUMES_BY_SOURCE, key)]
            case "snapshot" if has_changed(change, lambda item: item.uid):
                return [item.key for item in view.find(VOLUMES_BY_SOURCE, change.key)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            volume = view.get(key)
            if volume is None or volume.deleting or not is_unbegun(view, volume):
                continue
            if (wait := volume.envelope.created_at + GRACE_SECONDS - now) > 0:
                plan.later[key] = min(wait, GRACE_SECONDS)  # a clock may have been set back
                continue
            draft = Draft()
            draft.change(volume, deleting_since=now)
            said = "the VM that it was made for was deleted before it had begun"
            commit = draft.commit(key, [Event("Normal", "Dropped", said, volume.envelope.ref, SOURCE)])
            if commit is not None:
                plan.commits.append(commit)
        return plan


def is_unbegun(view: View, volume: Item) -> bool:
    """Whether it has no data, and no VM is left that could begin with it."""
    origin = read_origin(volume)
    if origin is None or origin.alone or volume.status(VolumeStatus).node_uid is not None:
        return False
    return not view.find(VMS_BY_ORIGIN, object_key("snapshot", volume.envelope.project, origin.snapshot))
