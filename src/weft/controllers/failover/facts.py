"""Facts for the witness of a link: for each VM that is replicated over the link, which cluster is primary."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.client.cluster.witness import WitnessLink
from weft.controllers.image.credentials import Unseal
from weft.failover.timing import CLUSTERS
from weft.informer.view import Item, View
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.cluster.link import VALUE, WITNESSED, read_witness_token
from weft.kinds.replica import PRIMARY, REPLICA, ReplicaMarks, ReplicaSpec
from weft.kinds.replication import (
    ENDED,
    REPLICATION,
    REPLICATIONS_BY_CLUSTER,
    ReplicationActions,
    ReplicationMarks,
    ReplicationSpec,
    ReplicationStatus,
)
from weft.kinds.secret import place_of
from weft.objects.errors import NotFound
from weft.objects.identity import CLUSTER_PREFIX, object_key
from weft.protocol.failover.claim import Claim, Generation
from weft.protocol.failover.witness import WitnessRequest

PROMISE_SECONDS = CLUSTERS.promise
MAY_BE_TAKEN = ("hold", "release")  # a replication's ``guard`` while its replica may take over


class Group(msgspec.Struct, frozen=True):
    """A VM at one cluster with its replica at the other; ``item`` is the one of both objects that is here."""

    item: Item
    name: str  # the same at both clusters: the uid of the replication
    claim: Claim
    is_standby: bool  # a replica that wasn't promoted
    is_source: bool = False  # a replication, whose VM is here


def read_witness(cluster: Item, unseal: Unseal | None) -> WitnessLink | None:
    """None if the link has no witness. Raises NotFound or Unavailable if its token can't be opened."""
    spec, name = cluster.spec(ClusterSpec), cluster.envelope.name
    if spec.witness is None:
        return None
    sealed = spec.sealed.get(VALUE)
    token = unseal(sealed, place_of(None, name, VALUE, CLUSTER.name)).decode() if unseal and sealed else ""
    if (read := read_witness_token(token)) is None:
        raise NotFound(f"the witness's token of cluster {name} can't be opened here", reason="keyLost")
    return WitnessLink(spec.witness.url, read)


def list_groups(view: View, cluster: str, site: str, peer: str) -> list[Group]:
    """The groups of the link with this cluster; ``site`` and ``peer`` are what the witness calls this cluster and that one."""
    found = []
    for item in view.find(REPLICATIONS_BY_CLUSTER, cluster):
        status = item.status(ReplicationStatus)
        may_be_taken = item.marks(ReplicationMarks).guard in MAY_BE_TAKEN or item.actions(ReplicationActions).alone
        is_kept = status.point is not None and status.phase not in ENDED and not item.deleting
        if (may_be_taken and status.phase != "Stale") or is_kept:
            found.append(Group(item, item.uid, Claim(Generation(1, item.uid), site), is_standby=False, is_source=True))
    for item in view.of_kind(REPLICA.name).values():
        if item.envelope.creator == f"{CLUSTER_PREFIX}{cluster}" and not item.deleting:
            origin, marks = item.spec(ReplicaSpec).origin, item.marks(ReplicaMarks)
            is_standby = marks.role != PRIMARY
            claim = (
                Claim(Generation(marks.generation, origin), peer)
                if is_standby
                else Claim(Generation(marks.generation, marks.granted or item.uid), site)
            )
            found.append(Group(item, origin, claim, is_standby))
    return found


def make_request(group: Group, peer: str, epoch: str, *, asks: bool = False) -> WitnessRequest:
    """``asks``: whether this cluster may become primary. If not, it gives back what it was granted and won't use."""
    what: Literal["claim", "question", "return", "inspect"] = "claim"
    turn, returned = _find_turn(group), ""
    if group.is_standby:
        marks = group.item.marks(ReplicaMarks)
        if marks.restored:
            what = "inspect"
        elif asks:
            what, turn = "question", marks.arming
        elif marks.returned:
            what, returned = "return", marks.returned
    return WitnessRequest(
        peer=peer,
        group=group.name,
        what=what,
        claim=group.claim,
        seconds=PROMISE_SECONDS,
        epoch=epoch,
        turn=turn,
        returned=returned,
    )


def _find_turn(group: Group) -> int:
    """Turn of a source that lets nothing take over: no copy that was allowed to in an earlier turn may any more."""
    if not group.is_source:
        return 0
    marks = group.item.marks(ReplicationMarks)
    return 0 if marks.guard == "hold" else marks.arming


def list_unwitnessed(view: View) -> list[Item]:
    """Objects that have the condition, over links that have no witness any more."""
    names = {item: item.spec(ReplicationSpec).cluster for item in view.of_kind(REPLICATION.name).values()}
    for item in view.of_kind(REPLICA.name).values():
        names[item] = item.envelope.creator.removeprefix(CLUSTER_PREFIX)
    return [item for item, name in names.items() if item.envelope.condition(WITNESSED) and not _has_witness(view, name)]


def _has_witness(view: View, name: str) -> bool:
    cluster = view.get(object_key(CLUSTER.name, None, name))
    return cluster is not None and cluster.spec(ClusterSpec).witness is not None
