"""What every runtime that takes snapshots promises of one. A test subclasses ``SnapshotPromises``.

The subclass gives ``lab``, one node that stays for all its tests, whose ``plan_snapshot`` gives empty overlays for a guest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
from tests.conformance.runtime_contract import Driver, RuntimeLab, ready

from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.contracts.driver.snapshot import CanSnapshot, SnapshotFacts, SnapshotPlan
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput


class Taker(Driver, CanSnapshot, Protocol):
    """A driver with everything these promises speak of."""


class SnapshotLab(RuntimeLab, Protocol):
    def plan_snapshot(self, plan: GuestPlan, key: str, *, memory: bool = False) -> SnapshotPlan:
        """With an empty overlay for each disk; the same key gives the same."""

    def copy_disks(self, plan: GuestPlan, name: str) -> list[GuestDisk]:
        """New disks that stand on those of the plan."""


async def until_over(driver: CanSnapshot, plan: GuestPlan, key: str) -> SnapshotFacts:
    async with asyncio.timeout(120):
        while (facts := await driver.snapshots.progress(plan.id, key)).phase in ("switching", "saving"):
            await asyncio.sleep(0.02)
    return facts


class SnapshotPromises:
    @pytest.fixture
    async def driver(self, lab: SnapshotLab) -> AsyncIterator[Taker]:
        driver = await self.heir(lab)
        yield driver
        await driver.close()

    async def heir(self, lab: SnapshotLab) -> Taker:
        driver = lab.driver()
        assert isinstance(driver, CanSnapshot)
        await driver.recover()
        return driver  # type: ignore[return-value]

    async def test_disks_switch_once_and_the_next_driver_knows(self, lab: SnapshotLab, driver: Taker) -> None:
        plan = lab.plan("snap-disks")
        await ready(driver, plan)
        assert (await driver.snapshots.progress(plan.id, "one")).phase == "none"
        snapshot = lab.plan_snapshot(plan, "one")
        facts = await driver.snapshots.take(plan.id, snapshot)
        assert (facts.phase, facts.switched, facts.consistency) == ("done", True, "filesystem")
        assert facts.taken_at > 0 and facts.pause_ms > 0 and facts.message == ""
        assert await driver.snapshots.take(plan.id, snapshot) == facts, "again is the same"
        assert await driver.snapshots.cancel(plan.id, "one") == facts, "what is done stays"
        await driver.close()
        heir = await self.heir(lab)
        assert await heir.snapshots.progress(plan.id, "one") == facts
        await heir.stop(plan.id, grace_seconds=0)
        assert await heir.snapshots.progress(plan.id, "one") == facts, "also once the guest has ended"
        await heir.snapshots.forget(plan.id, "one")
        await heir.snapshots.forget(plan.id, "one")
        assert (await heir.snapshots.progress(plan.id, "one")).phase == "none"
        with pytest.raises(IllegalTransition):
            await heir.snapshots.take(plan.id, lab.plan_snapshot(plan, "two"))
        await heir.remove(plan.id)
        assert (await heir.snapshots.progress(plan.id, "one")).phase == "none"
        await heir.snapshots.cancel(plan.id, "one")
        await heir.close()

    async def test_a_guest_begins_from_memory_as_the_one_that_it_was(self, lab: SnapshotLab, driver: Taker) -> None:
        plan = lab.plan("snap-memory")
        was = await ready(driver, plan)
        snapshot = lab.plan_snapshot(plan, "m", memory=True)
        facts = await driver.snapshots.take(plan.id, snapshot)
        assert facts.switched and facts.consistency == "memory" and facts.phase in ("saving", "done")
        facts = await until_over(driver, plan, "m")
        assert facts.phase == "done" and facts.memory_bytes == Path(snapshot.memory).stat().st_size > 0
        await driver.stop(plan.id, grace_seconds=0)
        await driver.remove(plan.id)
        again = msgspec.structs.replace(plan, memory=snapshot.memory, disks=lab.copy_disks(plan, "snap-again"))
        await driver.start(again)
        now = await ready(driver, again)
        assert now.boot_id == was.boot_id and Path(snapshot.memory).exists()
        await driver.stop(plan.id, grace_seconds=0)
        await driver.start(again)
        assert (await ready(driver, again)).boot_id != was.boot_id, "its next start is a boot"
        await driver.stop(plan.id, grace_seconds=0)
        await driver.remove(plan.id)

    async def test_memory_that_cannot_go_on_is_refused_and_leaves_nothing(
        self, lab: SnapshotLab, driver: Taker
    ) -> None:
        plan = msgspec.structs.replace(lab.plan("snap-none"), memory="/nowhere/memory")
        with pytest.raises(DriverFailed, match="memory"):
            await driver.start(plan)
        assert (await driver.inspect(plan.id)).state == "absent" and lab.leftovers(plan.id) == []

    async def test_a_copy_needs_an_agent_to_become_another_machine(self, lab: SnapshotLab, driver: Taker) -> None:
        plan = lab.plan("snap-agent")
        await ready(driver, plan)
        snapshot = lab.plan_snapshot(plan, "m", memory=True)
        await driver.snapshots.take(plan.id, snapshot)
        await until_over(driver, plan, "m")
        twin = msgspec.structs.replace(
            lab.plan("snap-twin"),
            memory=snapshot.memory,
            disks=lab.copy_disks(plan, "snap-twin"),
            identity=Identity("snap-twin", "0" * 32),
            has_agent=False,
        )
        with pytest.raises(InvalidInput, match="agent"):
            await driver.start(twin)
        assert (await driver.inspect(twin.id)).state == "absent" and lab.leftovers(twin.id) == []
        await driver.stop(plan.id, grace_seconds=0)
        await driver.remove(plan.id)
