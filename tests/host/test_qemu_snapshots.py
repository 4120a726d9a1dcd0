"""Snapshots of a guest that counts on two disks and in memory: what is restored is of one instant, and the original goes on."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab

pytest.register_assert_rewrite("tests.conformance.runtime_contract", "snapshot_lab")

from snapshot_lab import (
    begin_counting,
    copy_disks,
    lay_over,
    look,
    plan_snapshot,
    read_counters,
    until_over,
)
from tests.conformance.runtime_contract import ready

pytestmark = pytest.mark.host


async def test_disks_are_kept_at_one_instant_and_the_guest_goes_on(lab: GuestLab, counter: bytes) -> None:
    plan, driver = lab.plan("counts", disks=2), lab.driver()
    await begin_counting(driver, plan, counter)
    now = plan
    for key in ("first", "second"):
        seen = await look(driver, plan)
        snapshot = plan_snapshot(lab, plan, key)
        facts = await driver.snapshots.take(plan.id, snapshot)
        assert (facts.phase, facts.switched, facts.consistency, facts.message) == ("done", True, "filesystem", "")
        assert 0 < facts.pause_ms < 5000 and facts.taken_at > 0
        assert await driver.snapshots.take(plan.id, snapshot) == facts, "again is the same"
        copy = msgspec.structs.replace(lab.plan(f"copy-{key}"), disks=copy_disks(lab, now, f"copy-{key}"))
        now = lay_over(now, snapshot)
        await ready(driver, copy)
        first, second = await read_counters(driver, copy)
        assert first - second in (0, 1) and first >= seen
        await driver.stop(copy.id, grace_seconds=0)
        await look(driver, plan, after=first + 1)
        await driver.snapshots.forget(plan.id, key)
    await driver.stop(plan.id, grace_seconds=0)
    await ready(driver, now)
    first, second = await read_counters(driver, now)
    assert first - second in (0, 1) and first > seen
    await driver.stop(plan.id, grace_seconds=0)


async def test_memory_that_is_kept_goes_on_as_the_guest_that_it_was(lab: GuestLab, counter: bytes) -> None:
    plan, driver = lab.plan("remembers", disks=2), lab.driver()
    await begin_counting(driver, plan, counter)
    snapshot = plan_snapshot(lab, plan, "m", memory=True)
    facts = await driver.snapshots.take(plan.id, snapshot)
    assert facts.phase in ("saving", "done") and facts.consistency == "memory" and facts.message == ""
    facts = await until_over(driver, plan, "m")
    assert facts.phase == "done" and facts.memory_bytes == os.path.getsize(snapshot.memory)
    assert not Path(f"{snapshot.memory}.pending").exists()
    seen = await look(driver, plan)
    await look(driver, plan, after=seen + 50)
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    again = msgspec.structs.replace(plan, memory=snapshot.memory, disks=copy_disks(lab, plan, "again"))
    await driver.start(again)
    await ready(driver, again)
    now = await look(driver, again)
    assert now <= seen, "it goes on from where it was"
    await look(driver, again, after=now + 10)
    assert Path(snapshot.memory).exists()
    await driver.stop(plan.id, grace_seconds=0)
