"""The question to a linked cluster, and its answer."""

from __future__ import annotations

import msgspec

from weft.client.cluster.peer import PeerLink
from weft.controllers.image.credentials import Unseal
from weft.informer.view import Item, View
from weft.kinds.cluster import CLUSTER, TOKEN, ClusterSpec, ClusterStatus
from weft.kinds.replication import ENDED, REPLICATIONS_BY_CLUSTER, ReplicationSpec, ReplicationStatus
from weft.kinds.secret import place_of
from weft.objects.errors import NotFound
from weft.protocol.link import HelloAnswer


class Reply(msgspec.Struct, frozen=True):
    """The outcome of one question: ``hello``, or why there is none."""

    hello: HelloAnswer | None = None
    reason: str = ""
    message: str = ""
    clock_offset_seconds: float = 0.0  # its clock's time less this one's, within half the time that the question took
    silent_seconds: float = 0.0  # since it last answered, or was first asked


def read_link(cluster: Item, unseal: Unseal | None) -> PeerLink:
    """How this other cluster is reached. Raises NotFound or Unavailable if its token can't be opened."""
    spec, name = cluster.spec(ClusterSpec), cluster.envelope.name
    sealed = spec.sealed.get(TOKEN)
    if unseal is None or sealed is None:
        raise NotFound(f"the token of cluster {name} can't be opened here", reason="keyLost")
    token = unseal(sealed, place_of(None, name, TOKEN, CLUSTER.name)).decode()
    return PeerLink(name, spec.url, spec.ca, token, tuple(cluster.status(ClusterStatus).servers))


def find_lag(view: View, name: str) -> tuple[float, float] | None:
    """Age of the newest point and RPO, in s, of the replica here whose newest point is oldest for its RPO. None: there is no point
    yet, nothing is replicated, or all of that is paused, or over.
    """
    found = []
    for item in view.find(REPLICATIONS_BY_CLUSTER, name):
        status, rpo = item.status(ReplicationStatus), item.spec(ReplicationSpec).rpo
        lag = status.lag_seconds
        if lag is not None and not item.deleting and status.phase not in ENDED:
            found.append((lag / rpo, lag, rpo))
    return max(found)[1:] if found else None
