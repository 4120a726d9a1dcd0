"""kill -9 of the process that decides, at the very commit of a decision: nothing is lost, nothing given away twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from tests.scenario.controllers.test_controllers_process import RealLab, fabric, start
from tests.scenario.controllers_lab import GIB

from weft.contracts.store import Absent, Precondition, Write
from weft.kinds.migration import MigrationStatus
from weft.kinds.node import Gpu
from weft.objects.envelope import decode_part
from weft.objects.errors import StoreUnavailable

Moment = Literal["decided", "committed", "on its way"]
T4 = Gpu("Tesla T4", 16 * GIB)


class Trap:
    """In front of the store: the first placement that arrives after ``moment`` was set is the last its process makes.

    ``decided``: its commit never arrives; ``committed``: it lands, and nobody hears so; ``on its way``: it lands when the
    next process has long been at work."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.process: asyncio.subprocess.Process | None = None
        self.moment: Moment | None = None
        self.arrives = asyncio.Event()
        self.outcome: asyncio.Task[int] | None = None  # of the commit whose sender is dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(
        self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), *, idempotency_key: str | None = None
    ) -> int:
        places = any(isinstance(item, Absent) and item.key.startswith("/allocation/") for item in preconditions)
        moment, process = self.moment, self.process
        if moment is None or process is None or not places:
            revision: int = await self._store.commit(writes, preconditions, idempotency_key=idempotency_key)
            return revision
        self.moment = None
        process.kill()
        if moment == "committed":
            self.arrives.set()
        if moment != "decided":
            self.outcome = asyncio.ensure_future(self._land(writes, preconditions))
        raise StoreUnavailable("nobody is left to be answered")

    async def _land(self, writes: Sequence[Write], preconditions: Sequence[Precondition]) -> int:
        await self.arrives.wait()
        self.arrives.clear()
        revision: int = await self._store.commit(writes, preconditions)
        return revision


async def check(lab: RealLab, names: list[str]) -> None:
    """Each VM has one place, and no node or device has given away more than it has."""
    allocations = await lab.allocations()
    assert sorted(a.workload.name for a in allocations) == sorted(names)
    cpu: Counter[str] = Counter()
    devices: Counter[tuple[str, int]] = Counter()
    for allocation in allocations:
        cpu[allocation.node] += round(allocation.resources.cpu * 1000)
        devices.update({(allocation.node, gpu.index): gpu.share for gpu in allocation.gpus})
    assert all(amount <= 8000 for amount in cpu.values()), cpu
    assert all(share <= 1000 for share in devices.values()), devices
    assert sum(devices.values()) == 500 * sum("share" in name for name in names), devices


async def test_controllers_killed_while_they_hold_room_for_a_planned_move_hold_it_once() -> None:
    async with fabric(Trap) as lab:
        trap: Trap = lab.front
        await lab.add_node("n1")
        process = trap.process = await start(lab.folder)
        try:
            await lab.put_vm("web")
            await lab.until_phase("web", "Running")
            await lab.add_node("n2")
            moments: tuple[Moment, ...] = ("decided", "committed", "on its way")
            for moment in moments:
                trap.moment = moment
                wish = {"workload": "vm/web", "not_before": lab.clock.now() + 3600}
                planned = await lab.put("migration", moment.replace(" ", "-"), wish, finalizers=("migration",))
                assert await asyncio.wait_for(process.wait(), 30) < 0
                process = trap.process = await start(lab.folder)

                async def held(key: str = planned.key) -> bool:
                    envelope = await lab.get(key)
                    assert envelope is not None
                    return decode_part(envelope.status, MigrationStatus).target == "n2"

                await lab.until(held)
                if trap.outcome is not None:
                    trap.arrives.set()
                    await asyncio.wait([trap.outcome])
                    trap.outcome = None
                rooms = [one for one in await lab.allocations() if one.role == "reserved"]
                assert [(room.node, room.migration and room.migration.key) for room in rooms] == [("n2", planned.uid)]
                await lab.delete(planned.key)
                await lab.until_gone(planned.key)
                assert [one.role for one in await lab.allocations()] == ["active"]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_controllers_killed_between_decision_and_commit_lose_nothing_and_double_nothing() -> None:
    names: list[str] = []
    async with fabric(Trap) as lab:
        trap: Trap = lab.front
        for node in ("n1", "n2"):
            await lab.add_node(node, gpus=[T4, T4])
        process = trap.process = await start(lab.folder)
        try:
            await lab.put_vm("first")
            await lab.until_phase("first", "Running")
            names.append("first")
            moments: tuple[Moment, ...] = ("decided", "committed", "on its way")
            for number, moment in enumerate(moments):
                trap.moment = moment
                for kind, wish in (("plain", {}), ("share-a", {"gpu_share": 0.5}), ("share-b", {"gpu_share": 0.5})):
                    names.append(f"{kind}-{number}")
                    await lab.put_vm(names[-1], cpu=1.0, **wish)
                assert await asyncio.wait_for(process.wait(), 30) < 0
                process = trap.process = await start(lab.folder)
                for name in names:
                    await lab.until_phase(name, "Running")
                if trap.outcome is not None:
                    if not trap.outcome.done():
                        trap.arrives.set()
                    await asyncio.wait([trap.outcome])
                    landed = trap.outcome.exception() is None
                    assert landed == (moment == "committed"), f"{moment}: {trap.outcome}"
                    trap.outcome = None
                await check(lab, names)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
