"""The fake runtime's guests go on from a snapshot's instant, whatever becomes of the driver."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.unit.drivers.runtime.test_runtime_fake import FakeLab

from weft.contracts.driver.snapshot import CanSnapshot, SnapshotPlan
from weft.objects.errors import DriverFailed, IllegalTransition

OVERLAYS = {"root": "/nowhere/root.next"}


@pytest.fixture
def lab(tmp_path: Path) -> FakeLab:
    return FakeLab(tmp_path)


async def test_disks_switch_at_once_and_it_is_told_again_by_another_driver(lab: FakeLab) -> None:
    driver, plan = lab.driver(), lab.plan("web")
    assert isinstance(driver, CanSnapshot)
    with pytest.raises(IllegalTransition):
        await driver.start(plan)
        await driver.stop(plan.id, grace_seconds=0)
        await driver.snapshots.take(plan.id, SnapshotPlan("k", OVERLAYS))
    await driver.start(plan)
    facts = await driver.snapshots.take(plan.id, SnapshotPlan("k", OVERLAYS))
    assert (facts.phase, facts.switched, facts.consistency) == ("done", True, "filesystem")
    assert await lab.driver().snapshots.progress(plan.id, "k") == facts
    assert (await driver.snapshots.progress(plan.id, "other")).phase == "none"
    await driver.snapshots.forget(plan.id, "k")
    assert (await driver.snapshots.progress(plan.id, "k")).phase == "none"


async def test_memory_is_whole_a_while_later_and_another_guest_begins_from_it(lab: FakeLab, tmp_path: Path) -> None:
    driver, plan, memory = lab.driver(), lab.plan("web"), tmp_path / "s.memory"
    begun = await driver.start(plan)
    assert (await driver.snapshots.take(plan.id, SnapshotPlan("k", OVERLAYS, str(memory)))).phase == "saving"
    assert not memory.exists()
    with pytest.raises(IllegalTransition):
        await driver.snapshots.take(plan.id, SnapshotPlan("k2", OVERLAYS, str(memory)))
    async with asyncio.timeout(10):
        while (facts := await driver.snapshots.progress(plan.id, "k")).phase == "saving":
            await asyncio.sleep(0.02)
    assert facts.phase == "done" and facts.memory_bytes == memory.stat().st_size
    twin = msgspec.structs.replace(lab.plan("twin"), memory=str(memory))
    assert (await driver.start(twin)).boot_id == begun.boot_id
    with pytest.raises(DriverFailed):
        await driver.start(msgspec.structs.replace(lab.plan("third"), memory=str(tmp_path / "missing")))


@pytest.mark.parametrize("way", ["cancelled", "ended"])
async def test_memory_that_is_not_whole_is_none_and_the_disks_stay_switched(
    lab: FakeLab, tmp_path: Path, way: str
) -> None:
    driver, plan, memory = lab.driver(), lab.plan("web"), tmp_path / "s.memory"
    await driver.start(plan)
    await driver.snapshots.take(plan.id, SnapshotPlan("k", OVERLAYS, str(memory)))
    if way == "cancelled":
        await driver.snapshots.cancel(plan.id, "k")
    else:
        driver.kill(plan.id)
        await driver.start(plan)
    facts = await driver.snapshots.progress(plan.id, "k")
    assert (facts.phase, facts.switched, memory.exists()) == ("failed", True, False)
