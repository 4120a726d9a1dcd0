"""Keeps the one NetworkTopology: makes it where it is missing, and sums up in its status where the nodes are.

Reads nodes and networktopologies; writes networktopologies. Woken by nodes that come, go or get another place, and by what people
declare.
A burst of nodes is summed up once a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.network_topology import (
    FABRIC,
    MOST_NAMED,
    NETWORK_TOPOLOGY,
    NetworkTopologySpec,
    NetworkTopologyStatus,
)
from weft.objects.envelope import merge_part
from weft.objects.identity import object_key

KEY = object_key(NETWORK_TOPOLOGY.name, None, FABRIC)
WRITE_EVERY_SECONDS = 1.0
PLACE_LABELS = ("zone", "rack")


class NetworkTopologies:
    name = "topology"
    kinds = (NETWORK_TOPOLOGY.name, "node")

    def __init__(self) -> None:
        self._written_at = 0.0

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == NETWORK_TOPOLOGY.name:
            return (change.key,)
        return (KEY,) if has_changed(change, read_place) else ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        wait = self._written_at + WRITE_EVERY_SECONDS - now
        if 0 < wait <= WRITE_EVERY_SECONDS:
            return Plan(later={KEY: wait})
        self._written_at = now
        commit = plan_topology(view, now)
        return Plan([commit] if commit is not None else [])


def plan_topology(view: View, now: float) -> Commit | None:
    """Make it, or write its status; None if nothing changes."""
    found = view.get(KEY)
    if found is None:
        if not view.of_kind("node"):
            return None
        draft = Draft()
        draft.make(NETWORK_TOPOLOGY.make(FABRIC, NetworkTopologySpec(), now))
        return draft.commit(KEY)
    status = sum_up(view, found.spec(NetworkTopologySpec))
    if found.deleting or status == found.status(NetworkTopologyStatus):
        return None
    envelope = edit(found)
    envelope.status = merge_part(envelope.status, status)
    return Commit(KEY, [put(envelope)], [unchanged(found)])


def sum_up(view: View, spec: NetworkTopologySpec) -> NetworkTopologyStatus:
    """The status that follows from the nodes and what is declared."""
    places = [read_place(node) for node in view.of_kind("node").values()]
    known = {name for name, _, _ in places} | {device.name for device in spec.devices}
    ends = {end for link in spec.links for end in (link.source, link.target)}
    unknown = sorted(ends - known)
    more = f" and {len(unknown) - 2} more" if len(unknown) > 2 else ""
    what = "is neither a node nor a device" if len(unknown) == 1 else "are neither nodes nor devices"
    return NetworkTopologyStatus(
        phase="Incomplete" if unknown else "Ready",
        message=f"links name {', '.join(unknown[:2])}{more}, which {what}" if unknown else "",
        nodes=len(places),
        zones=len({zone for _, zone, _ in places if zone}),
        racks=len({place[1:] for place in places if place[2]}),
        unlabelled=sum(not zone and not rack for _, zone, rack in places),
        unknown=unknown[:MOST_NAMED],
    )


def read_place(node: Item) -> tuple[str, str, str]:
    """A node's name, zone and rack."""
    zone, rack = (node.envelope.labels.get(label, "") for label in PLACE_LABELS)
    return node.envelope.name, zone, rack
