"""A VM whose guest was handed over to another cluster by a migration that the store, which was restored, doesn't know of. Pure.

Its node says which: one that the other cluster has taken over leaves only its name here. One that was handed over, and no more, may
run there: people take it back (``controllers/departure/reclaim.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.workload.adoption import find_copies
from weft.informer.commit import Commit, Draft
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import (
    AllocatedVolume,
    AllocationReport,
    AllocationSpec,
    find_unknown_departure,
    has_left_cluster,
    set_desired,
)
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.kinds.migration import ENDED, MIGRATIONS_BY_WORKLOAD, MigrationSpec, MigrationStatus
from weft.kinds.node import NODES_BY_ORPHAN
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD
from weft.kinds.vm import VmActions, VmSpec
from weft.objects.identity import MAX_NAME, object_key


def plan_departed(view: View, workload: Item, allocations: Sequence[Item], silent: bool, now: float) -> Commit | None:
    """Plan a VM whose guest has left so; None for all others. ``silent``: some nodes have not reported since a restore, and the
    guest may have come back to one of them.
    """
    wanted = spec_of(workload)
    if not isinstance(wanted, VmSpec) or workload.deleting:
        return None
    for place in allocations:
        report = place.report(AllocationReport)
        found = find_unknown_departure(place.spec(AllocationSpec), report)
        if found is None or place.deleting:
            continue
        if has_left_cluster(report):
            waits = silent or _is_led(view, workload) or _is_here(view, workload)
            return None if waits else _leave(view, workload, place, found, now)
    return None


def leave_name(
    view: View, draft: Draft, workload: Item, volumes: Iterable[AllocatedVolume], where: str, now: float
) -> None:
    """Keep the name here of a VM that has left to ``where``, and what was saved of it: nothing that can run. ``volumes`` went with
    it, and go; one that was attached since stays.
    """
    left = msgspec.structs.replace(
        workload.spec(VmSpec),
        run="stop",
        networks=[],
        publish=[],
        security_groups=[],
        volumes=[],
        snapshots=None,
    )
    marks = msgspec.structs.replace(workload.marks(WorkloadMarks), guard="", departed=where)
    actions = msgspec.structs.replace(workload.actions(VmActions), reclaim=None)
    draft.change(workload, spec=left, actions=actions, marks=marks)
    for copied in volumes:
        volume = view.get(object_key("volume", workload.envelope.project, copied.name))
        if volume is not None and volume.uid == copied.uid and not volume.deleting:
            draft.change(volume, deleting_since=now)
    for port in view.find(PUBLISHED_PORTS_BY_WORKLOAD, workload.uid):
        draft.delete(port)


def _is_led(view: View, workload: Item) -> bool:
    """Whether a migration to another cluster is under way that ends it."""
    migrations = view.find(MIGRATIONS_BY_WORKLOAD, workload.key)
    return any(one.spec(MigrationSpec).cluster and one.status(MigrationStatus).phase not in ENDED for one in migrations)


def _is_here(view: View, workload: Item) -> bool:
    """Whether a node reports a guest of that name, which may be this one, come back."""
    copies = [copy for node in view.find(NODES_BY_ORPHAN, workload.key) for copy in find_copies(node, workload.key)]
    return any(copy.standing in ("here", "open") for copy in copies)


def _leave(view: View, workload: Item, place: Item, found: MigrationReport, now: float) -> Commit | None:
    spec, name = place.spec(AllocationSpec), workload.envelope.name
    cluster = found.peer.partition("/")[0][:MAX_NAME]
    link = view.get(object_key(CLUSTER.name, None, cluster))
    projects = link.spec(ClusterSpec).projects if link is not None else {}
    migration = AllocatedMigration(key=found.key, peer=found.peer, peer_uid="", peer_allocation="", taken_over=True)
    draft = Draft(workload, place)
    gone = msgspec.structs.replace(set_desired(spec, "stop"), role="source", migration=migration)
    draft.change(place, spec=gone, deleting_since=now)
    where = f"{cluster}/{projects.get(workload.envelope.project or '', '?')}/{name}"
    leave_name(view, draft, workload, spec.volumes, where, now)
    message = f"the guest left {spec.node} for {found.peer} in a migration that the store doesn't know of: its name is left here"
    return draft.commit(workload.key, [Event("Warning", "LeftCluster", message, workload.envelope.ref, "workload")])
