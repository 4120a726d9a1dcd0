"""The replica in this cluster that a replication sends to. Pure."""

from __future__ import annotations

from weft.informer.view import Item, View
from weft.kinds.replica import REPLICA
from weft.kinds.replication import ReplicationSpec
from weft.objects.identity import object_key


def find_target(view: View, replication: Item) -> Item | None:
    """The replica in this cluster that the points go to; None: they go to another one, or it isn't there."""
    spec, envelope = replication.spec(ReplicationSpec), replication.envelope
    found = view.get(object_key(REPLICA.name, envelope.project, spec.replica or envelope.name))
    return found if found is not None and found.envelope.owner == envelope.ref and not found.deleting else None
