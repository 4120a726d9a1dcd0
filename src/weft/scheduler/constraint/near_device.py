"""The preference ``near: device/NAME``: the node whose gateway the device is behind, then those nearest to it by round trips. Pure.

A value is 100 there, and 50 at the median of the other nodes. A device that is gone, or whose node is, decides nothing.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from weft.contracts.policy import Column, Reads, Request, SoftTerm, Table
from weft.informer.view import View
from weft.kinds.device import DEVICE, DeviceSpec
from weft.kinds.fields.affinity import device_of
from weft.kinds.node import NODE
from weft.objects.identity import object_key
from weft.scheduler.constraint.talkers import score_nearness
from weft.scheduler.table.snapshot import Snapshot

WEIGHT = 1.0


def read_near_device(view: View, project: str | None, near: str | None) -> tuple[SoftTerm, ...]:
    """The preference that ``near`` is, with the uid of the device's node: "" where that isn't known."""
    name = device_of(near)
    if not name:
        return ()
    device = view.get(object_key(DEVICE.name, project, name))
    node = None if device is None else view.get(object_key(NODE.name, None, device.spec(DeviceSpec).node))
    return (SoftTerm("device", "" if node is None else node.uid, name),)


def find_device(request: Request) -> SoftTerm | None:
    return next((term for term in request.leans if term.what == "device"), None) if request.leans else None


class NearDevice:
    name = "near device"
    reads: Reads = "fabric"

    def asks(self, request: Request) -> Hashable:
        return find_device(request)

    def weight(self, request: Request) -> float:
        return WEIGHT if find_device(request) is not None else 0.0

    def terms(self, table: Table, request: Request) -> list[Column]:
        term = find_device(request)
        if term is None or term.name not in table.uids:
            return [Column(self.name, WEIGHT, np.zeros(len(table.names)))]
        values = score_nearness(table, [(term.name, 1.0)])
        if not values.any():  # no round trip is known
            values = np.where(np.array([uid == term.name for uid in table.uids]), 100.0, 0.0)
        for one in request.leans:
            if one.what == "apart":
                values = np.where(table.members(one.name) > 0, 0.0, values)
        return [Column(self.name, WEIGHT, values)]


def describe_device(snapshot: Snapshot, request: Request, row: int | None) -> list[str]:
    """One sentence on where the device is, and how far from the node of ``row``; none where no device is named."""
    term = find_device(request)
    if term is None:
        return []
    index = snapshot.index_of(term.name) if term.name else None
    if index is None:
        return [f"near device/{term.key}: it is gone, or its node is, so this preference decides nothing"]
    place = f"near device/{term.key}: it is behind the gateway of {snapshot.names[index]}"
    if row is None or row == index:
        return [place]
    trip = float(snapshot.distance(term.name)[row])
    return [f"{place}, {trip:.3g} ms away" if np.isfinite(trip) else place]
