"""The conditions every placement meets, in the order in which they are told: the first that fails is the node's verdict.

Pure. The cheap ones that say most come first; resources come last, so a shortfall is only told of a node that could take
the workload if it had more.
"""

from __future__ import annotations

import numpy as np

from weft.contracts.policy import RESOURCES, Filter, Flags, Lack, Request, Table


class Online:
    name = "online"

    def fits(self, table: Table, request: Request) -> Flags:
        return table.online

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return "not ready", []


class Cordon:
    name = "cordon"

    def fits(self, table: Table, request: Request) -> Flags:
        return ~table.cordoned

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        note = table.notes[index]
        return f"cordoned ({note})" if note else "cordoned", []


class NamedNode:
    name = "node"

    def fits(self, table: Table, request: Request) -> Flags:
        if request.node is None:
            return np.ones(len(table.names), dtype=np.bool_)
        return np.fromiter((name == request.node for name in table.names), dtype=np.bool_, count=len(table.names))

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return f"asked for node {request.node}", []


class VolumeHome:
    name = "volume"

    def fits(self, table: Table, request: Request) -> Flags:
        if request.home is None:
            return np.ones(len(table.names), dtype=np.bool_)
        return np.fromiter((uid == request.home for uid in table.uids), dtype=np.bool_, count=len(table.names))

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return "its volume's data lies on another node", []


class Machine:
    name = "machine"

    def fits(self, table: Table, request: Request) -> Flags:
        return table.machine(request.machine)

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        return f"can't run machine type {request.machine}", []


class Room:
    name = "resources"

    def fits(self, table: Table, request: Request) -> Flags:
        wanted = np.asarray(request.amounts, dtype=np.int64)[:, None]
        enough: Flags = np.all(table.capacity - table.allocated >= wanted, axis=0)
        return enough

    def explain(self, table: Table, request: Request, index: int) -> tuple[str, list[Lack]]:
        lacks = []
        for row, (resource, wanted) in enumerate(zip(RESOURCES, request.amounts, strict=True)):
            free = int(table.capacity[row, index] - table.allocated[row, index])
            if wanted > free:
                lacks.append(Lack(resource, wanted, free))
        return "not enough " + " and ".join(lack.resource for lack in lacks), lacks


ROOM: Filter = Room()
FILTERS: tuple[Filter, ...] = (Online(), Cordon(), NamedNode(), VolumeHome(), Machine(), ROOM)
