"""Choose where a point of a replica goes: to the node that has its points, as long as it was not promoted."""

from __future__ import annotations

from typing import Any

from weft.kinds.replica import PRIMARY, ReplicaMarks, ReplicaStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import IllegalTransition, Unavailable


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
