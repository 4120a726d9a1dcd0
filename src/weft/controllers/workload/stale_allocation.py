"""An allocation whose guest has migrated on, or may have, because the restored store is older than the migration. Pure.

Reads the allocation's report and the orphans that nodes report; writes the allocation: that the target never ran, or, once the
guest certainly isn't there any more, a deletion.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.workload.adoption import find_copies, has_guest
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationReport, AllocationSpec, come_back, set_desired
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.node import NODES_BY_ORPHAN
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.objects.envelope import merge_part

OrphanCopies = list[tuple[Item, OrphanCopy]]


def is_astray(place: Item) -> bool:
    """Whether its node reports that another one took its guest over for good."""
    report = place.report(AllocationReport)
    return place.spec(AllocationSpec).migration is None and (report.reason, report.state) == ("migrated", "stopped")


def plan_astray(view: View, workload: Item, allocations: Sequence[Item], silent: bool, now: float) -> Commit | None:
    """Plan a stale allocation; None for all others, and while nothing is certain. ``silent``: some nodes have not reported since a
    restore.
    """
    found = [
        (node, copy) for node in view.find(NODES_BY_ORPHAN, workload.key) for copy in find_copies(node, workload.key)
    ]
    for place in allocations:
        if place.deleting or place.spec(AllocationSpec).migration is not None:
            continue
        commit = _plan_never_ran(workload, place, found) or _plan_leaving(view, workload, place, found, silent, now)
        if commit is not None:
            return commit
    return None


def _plan_never_ran(workload: Item, place: Item, found: OrphanCopies) -> Commit | None:
    """Record in the allocation which of its migrations' targets never ran."""
    spec = new = place.spec(AllocationSpec)
    for _, copy in found:
        migration = copy.spec.migration
        if copy.standing == "abandoned" and migration is not None and migration.peer_allocation == place.uid:
            new = come_back(new, copy.migration) if copy.migration not in new.back_from else new
    if new == spec:
        return None
    envelope = edit(place)
    envelope.spec = merge_part(envelope.spec, new)
    envelope.generation += 1
    return Commit(workload.key, [put(envelope)], [unchanged(workload), unchanged(place)])


def _plan_leaving(
    view: View, workload: Item, place: Item, found: OrphanCopies, silent: bool, now: float
) -> Commit | None:
    spec, report = place.spec(AllocationSpec), place.report(AllocationReport)
    mine = [(node, copy) for node, copy in found if copy.spec.workload.uid == workload.uid]
    copies = [copy for _, copy in mine]
    later = [pair for pair in mine if pair[1].spec.incarnation > spec.incarnation and has_guest(view, pair[1], copies)]
    unsure = [copy for copy in copies if copy.standing in ("here", "open")]
    sent_away = report.migration is not None and any(copy.migration == report.migration.key for _, copy in later)
    if not (sent_away or (is_astray(place) and (later or not (silent or unsure)))):
        return None
    envelope = edit(place)
    envelope.deleting_since = now
    if sent_away and report.migration is not None:
        node, copy = next((node, copy) for node, copy in later if copy.migration == report.migration.key)
        left = AllocatedMigration(
            key=copy.migration, peer=node.envelope.name, peer_uid=node.uid, peer_allocation=copy.uid, taken_over=True
        )
        envelope.spec = merge_part(envelope.spec, _leave(spec, left))
        envelope.generation += 1
    message = f"the guest left {spec.node} in a migration that the store doesn't know of"
    event = Event("Warning", "MigratedOn", message, workload.envelope.ref, "workload")
    return Commit(workload.key, [put(envelope)], [unchanged(workload), unchanged(place)], [event])


def _leave(spec: AllocationSpec, migration: AllocatedMigration) -> AllocationSpec:
    return msgspec.structs.replace(set_desired(spec, "stop"), role="source", migration=migration)
