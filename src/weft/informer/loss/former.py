"""Lost allocations whose workload has gone on elsewhere. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.allocation import AllocationSpec, allocation_name, is_lost
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.identity import object_key


def has_gone_on(view: View, workload: Item, node_uid: str, uid: str, incarnation: int) -> bool:
    """Whether the allocation ``uid`` on a node is lost, and its workload had a later incarnation since."""
    place = view.get(object_key("allocation", None, allocation_name(node_uid, uid)))
    later = workload.status(WorkloadStatus).active_incarnation > incarnation
    return later and place is not None and is_lost(place.spec(AllocationSpec))
