"""Choose where a point of a replica goes: to the node that has its points, as long as it was not promoted; and which nodes of this
cluster may send one."""

from __future__ import annotations

from typing import Any

from weft.api.admission.commit import read_again
from weft.api.auth.authorise import require_enrolled
from weft.api.context import ApiContext
from weft.api.request.call import Call
from weft.api.request.target import Target
from weft.kinds.fields.replication.work import SendOrder
from weft.kinds.parts.stream_verbs import ReceiveInput
from weft.kinds.replica import PRIMARY, ReplicaMarks, ReplicaStatus
from weft.kinds.replication import REPLICATION, ReplicationStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import Forbidden, IllegalTransition, Unavailable
from weft.objects.identity import object_key


async def find_order(context: ApiContext, call: Call, target: Target) -> SendOrder | None:
    """The order of the requesting node to send a point to the replica, which is in its own cluster; None: it has none."""
    await require_enrolled(context, call.actor)
    replica = await read_again(context, target.key)
    owner = replica.owner if replica is not None else None
    left = await read_again(context, object_key(owner.kind, owner.project, owner.name)) if owner is not None else None
    if owner is None or left is None or (owner.kind, owner.uid) != (REPLICATION.name, left.uid):
        return None
    order = decode_part(left.status, ReplicationStatus).order
    return order if order is not None and not order.cluster and order.node_uid == call.actor.id else None


def refuse_other_point(order: SendOrder, given: ReceiveInput, target: Target) -> None:
    """Raise Forbidden for any other point than the one that the node is ordered to send."""
    if (given.origin, given.source, given.generation) != (order.uid, order.snapshot, order.generation):
        raise Forbidden(
            f"the node has no order to send this point to replica/{target.name}",
            hint="a node sends only what the controllers order it to send",
        )


def claim_replica(replica: Envelope) -> dict[str, Any]:
    """The claims of a stream with a point. Raises IllegalTransition (``staleGeneration``), Unavailable (``replicaNotReady``)."""
    marks, status = decode_part(replica.marks, ReplicaMarks), decode_part(replica.status, ReplicaStatus)
    if marks.role == PRIMARY:
        raise IllegalTransition(
            f"replica/{replica.name} was promoted, and is at generation {marks.generation}: it takes no more points",
            reason="staleGeneration",
            hint="its source is no longer the one that writes",
            details={"generation": marks.generation},
        )
    if status.order is None or replica.deleting_since is not None:
        raise Unavailable(
            f"replica/{replica.name} takes no point now: {status.message or 'it has no node yet'}",
            reason="replicaNotReady",
            retry_after_seconds=1.0,
        )
    return {"node_uid": status.order.node_uid, "guest_id": replica.uid}
