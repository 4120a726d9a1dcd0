"""Leases: people whose VMs have a start and an end, on nodes that are lost meanwhile. None begins before its start, and none twice
(``truth.py`` sees that); in the end each was kept, refused, or couldn't be kept because nothing had the capacity."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.simulation.connections import Line
from tests.simulation.people import MIB, TOKEN, VMS, insist
from weft.drivers.runtime.fake.driver import FakeGuest
from weft.kinds.allocation import AllocationSpec
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.quantity import format_moment

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

LATE_SECONDS = 120.0  # after its end


class Promises:
    """Sees each guest begin, and each promise that gets another place."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def see_begin(self, node: str, guest: FakeGuest) -> None:
        allocation = self._fabric.witness.allocations.get(guest.plan.uid)
        lease = decode_part(allocation.spec, AllocationSpec).lease if allocation is not None else None
        if lease is not None and self._fabric.clock.now() < lease.start - 1.0:
            self._fabric.witness.fail(f"vm {guest.plan.name} begins on {node} before {format_moment(lease.start)}")

    def see_commit(self, was: Envelope | None, now: Envelope | None) -> None:
        if now is None or was is None or now.kind != "allocation":
            return
        vm = next((vm for vm in self._fabric.ledger.notes.objects("vm") if vm.uid == now.owner.uid), None)  # type: ignore[union-attr]
        if (
            was.deleting_since is None
            and now.deleting_since is not None
            and vm is not None
            and vm.deleting_since is None
        ):
            self._fabric.wishes["re-planned"] += 1


class Holder:
    """Someone who has one lease after the other."""

    def __init__(self, fabric: Fabric, name: str, seed: int) -> None:
        self.name = name
        self._fabric = fabric
        self._draw = random.Random(f"leases {seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"holder of {name}", token=TOKEN)

    async def live(self) -> None:
        number = 0
        while not self._fabric.fate.spent:
            number += 1
            await self._hold(f"{self.name}-{number}")

    async def _hold(self, name: str) -> None:
        fabric, draw = self._fabric, self._draw
        start = fabric.clock.now() + draw.uniform(20.0, 150.0)
        duration = draw.choice((20.0, 60.0))
        lease = {"start": format_moment(start), "duration": duration}
        spec = {"image": "tiny", "cpu": 0.1, "memory": 64 * MIB, "grace": 1.0, "networks": ["default"], "lease": lease}
        answer = await self._ask("POST", VMS, {"kind": "vm", "name": name, "spec": spec})
        if answer.status < 300:
            fabric.wishes["lease"] += 1
            await asyncio.sleep(max(0.0, start + duration - fabric.clock.now()) + LATE_SECONDS * draw.random())
            vm = next((vm for vm in fabric.ledger.notes.objects("vm") if vm.name == name), None)
            if vm is None:
                return fabric.witness.note(f"vm {name} was lost")
            status = decode_part(vm.status, WorkloadStatus).lease
            fabric.wishes[f"lease {status.state if status is not None else None}"] += 1
            await self._ask("DELETE", f"{VMS}/{name}", None)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self._fabric.restores)
