"""Requirements on the place of a VM that migrates here from another cluster, running: read from its Arrival and its link. Pure."""

from __future__ import annotations

import msgspec

from weft.informer.view import Item, View
from weft.kinds.arrival import OVER, ArrivalActions, ArrivalSpec, ArrivalStatus, name_source
from weft.kinds.cluster import CLUSTER, ClusterSpec, describe_unlinked
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.parts.workload import WorkloadMarks
from weft.objects.identity import object_key


class ArrivingGuest(msgspec.Struct, frozen=True):
    """A guest that runs elsewhere still."""

    migration: AllocatedMigration
    machine: str  # the type that it runs on, with its version
    cpu_model: str  # "": all that its node has
    incarnation: int  # there


class Lacking(msgspec.Struct, frozen=True):
    """Why it gets no place, as token and sentence."""

    reason: str
    message: str


def read_arriving(view: View, workload: Item) -> ArrivingGuest | Lacking | None:
    """None for every workload that doesn't come from another cluster. Whom its target trusts, the link here says: what that cluster
    sends names the node and the allocation only."""
    name, project = workload.marks(WorkloadMarks).arrives, workload.envelope.project
    if not name:
        return None
    item = view.get(object_key("arrival", project, name))
    if item is None or item.deleting or item.status(ArrivalStatus).vm not in ("", workload.uid):
        return Lacking("arrivalOver", f"arrival/{name}, by which it comes here, is gone")
    spec, status = item.spec(ArrivalSpec), item.status(ArrivalStatus)
    if item.actions(ArrivalActions).cancel or status.ending or status.phase in OVER:
        return Lacking("arrivalOver", f"arrival/{name}, by which it comes here, is over")
    source = name_source(item.envelope.creator)
    link = view.get(object_key(CLUSTER.name, None, source))
    if link is None or link.deleting:
        return Lacking("notLinked", describe_unlinked(source))
    migration = AllocatedMigration(
        key=spec.key,
        peer=f"{source}/{spec.node}",
        peer_uid=spec.node_uid,
        peer_allocation=spec.allocation,
        peer_ca=link.spec(ClusterSpec).ca,
        bytes_per_second=spec.bytes_per_second,
        pause_ms=spec.pause_ms,
    )
    return ArrivingGuest(migration, spec.machine, spec.cpu_model, spec.incarnation)
