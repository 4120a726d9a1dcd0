"""network_proximity: the node nearest to the workload's caller, its device, its group, its volumes, and those that it talks to.

Reads the fabric: round trips between nodes, where members and data are, and who talks to whom. A value is 100 at no distance and 50
at HALF_MS; where no round trip is known the same zone counts as FAR. Each of the five that the request has counts the same.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import Column, Occasion, Reads, Request, Table, Values
from weft.scheduler.constraint.affinity import own_groups
from weft.scheduler.constraint.near_device import find_device
from weft.scheduler.policies.shares import with_free
from weft.scheduler.table.talkers import find_talkers

HALF_MS = 5.0
FAR = 25.0
MOST_PLACES = 4  # of a group's or a volume's nodes: those with most members


class NetworkProximity:
    name = "network_proximity"
    reads: Reads = "fabric"

    def terms(self, table: Table, request: Request, occasion: Occasion) -> list[Column]:
        near = [_near(table, uids, weights) for uids, weights in _find_places(table, request, occasion.uid)]
        values = np.mean(near, axis=0) if near else np.zeros(len(table.names))
        return with_free("near", values, table, request)


def _find_places(table: Table, request: Request, uid: str) -> list[tuple[list[str], list[float]]]:
    """The nodes to be near to, by uid, with weights: the caller's, the device's, those of each group to be near, the volumes', and
    those of the workloads that workload ``uid`` talks to."""
    places: list[tuple[list[str], list[float]]] = []
    if request.caller is not None:
        places.append(([request.caller], [1.0]))
    if (device := find_device(request)) is not None and device.name in table.uids:
        places.append(([device.name], [1.0]))
    leans = tuple(lean.name for lean in request.leans if lean.what == "near")
    for group in (*request.near, *leans) or own_groups(request):
        members = table.members(group)
        rows = np.flatnonzero(members)
        if rows.size:
            rows = rows[np.lexsort((table.rank[rows], -members[rows]))][:MOST_PLACES]
            places.append(([table.uids[row] for row in rows], [float(members[row]) for row in rows]))
    for datum in request.data:
        if datum.name.startswith("volume:"):
            rows = np.flatnonzero(table.holds(datum.name))[:MOST_PLACES]
            if rows.size:
                places.append(([table.uids[row] for row in rows], [1.0] * rows.size))
    if talkers := find_talkers(table, uid):
        places.append(([node for node, _ in talkers], [rate for _, rate in talkers]))
    return places


def _near(table: Table, uids: list[str], weights: list[float]) -> Values:
    """How near each node is to ``places``, on average."""
    near = np.zeros(len(table.names))
    for uid, weight in zip(uids, weights, strict=True):
        part = weight / sum(weights)
        value = table.distance(uid) / HALF_MS
        value += 1.0
        np.divide(100.0 * part, value, out=value)
        unknown = np.isnan(value)
        near += np.where(unknown, part * FAR * _same_zone(table, uid), value) if unknown.any() else value
    return near


def _same_zone(table: Table, uid: str) -> Values:
    """1 for the nodes in the zone of node ``uid``, else 0."""
    zones = table.text("zone")
    if zones is None or uid not in table.uids:
        return np.zeros(len(table.names))
    code = zones.codes[list(table.uids).index(uid)]
    return np.where((zones.codes == code) & (code >= 0), 1.0, 0.0)
