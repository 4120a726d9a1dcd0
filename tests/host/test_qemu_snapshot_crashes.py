"""Drivers, machines and room that go in the middle of a snapshot: the guest runs on or starts again on all that it wrote, and what
is kept is of one instant or isn't there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab, crash

pytest.register_assert_rewrite(
    "tests.conformance.runtime_contract", "tests.conformance.runtime_snapshots", "snapshot_lab"
)

from snapshot_lab import Listener, SnapshotLab, begin_counting, lay_over, look, read_counters
from tests.conformance.runtime_contract import ready, run
from tests.conformance.runtime_snapshots import until_over

from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.snapshot import taking

pytestmark = pytest.mark.host
MOST_STEPS = 400  # a busy machine needs more looks at the same step


@pytest.fixture(scope="module")
def lab(tiny: Path) -> Iterator[SnapshotLab]:
    lab = SnapshotLab(tiny)
    yield lab
    lab.close()


@pytest.fixture(autouse=True)
async def closing(lab: SnapshotLab) -> object:
    yield
    await lab.close_drivers()


async def open_files(lab: GuestLab, plan: GuestPlan) -> set[str]:
    (pid,) = lab.processes(f"/{plan.id}/")
    return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


def kill(lab: GuestLab, plan: GuestPlan) -> None:
    for pid in lab.processes(f"/{plan.id}/"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("memory", "stride"),
    [(True, 29), pytest.param(True, 1, marks=pytest.mark.long), pytest.param(False, 1, marks=pytest.mark.long)],
)
async def test_a_driver_killed_at_any_step_leaves_a_snapshot_or_none_and_a_guest_that_runs_on(
    lab: SnapshotLab, counter: bytes, memory: bool, stride: int
) -> None:
    plan, driver, phases = lab.plan(f"step-{memory}-{stride}", disks=2), lab.driver(), set()
    await begin_counting(driver, plan, counter, rest_ms=20)
    seen = 0
    await driver.close()
    for step in range(stride, MOST_STEPS, stride):
        snapshot = lab.plan_snapshot(plan, f"k{step}", memory=memory)
        file = lab.folder / "snapshot.json"
        file.write_bytes(msgspec.json.encode(snapshot))
        crashed = await crash(lab, plan, f"take:{file}", step)
        driver = lab.driver()
        await driver.recover()
        facts = await until_over(driver, plan, snapshot.key)
        phases.add(facts.phase)
        overlays = set(snapshot.overlays.values())
        assert overlays & await open_files(lab, plan) == (overlays if facts.switched else set()), (step, facts)
        assert facts.switched == (facts.phase != "none"), (step, facts)
        if facts.phase == "none":
            facts = await driver.snapshots.take(plan.id, snapshot)
            facts = await until_over(driver, plan, snapshot.key)
            assert facts.phase == "done", (step, facts)
        plan = lay_over(plan, snapshot)
        if memory:
            assert Path(snapshot.memory).exists() == (facts.phase == "done"), (step, facts)
            assert not list(lab.folder.glob("*.pending")), step
        seen = await look(driver, plan, after=seen + 1)
        await driver.snapshots.forget(plan.id, snapshot.key)
        await driver.close()
        if not crashed:
            break
    assert not crashed and phases >= {"none", "done"}
    driver = lab.driver()
    await driver.recover()
    await driver.stop(plan.id, grace_seconds=0)
    await ready(driver, plan)
    first, second = await read_counters(driver, plan)
    assert first - second in (0, 1) and first >= seen
    await driver.stop(plan.id, grace_seconds=0)


@pytest.mark.parametrize(
    "moment", [pytest.param("before", marks=pytest.mark.long), "after", pytest.param("saving", marks=pytest.mark.long)]
)
async def test_a_machine_killed_meanwhile_starts_again_on_all_that_it_wrote(
    lab: SnapshotLab, counter: bytes, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    plan, driver = lab.plan(f"dies-{moment}", disks=2), lab.driver()
    await begin_counting(driver, plan, counter)
    snapshot, switch = lab.plan_snapshot(plan, "k", memory=moment == "saving", freeze=False), taking.switch

    async def die(*given: object) -> None:
        if moment == "before":
            kill(lab, plan)
        await switch(*given)  # type: ignore[arg-type]
        kill(lab, plan)

    seen = await look(driver, plan)
    if moment != "saving":
        monkeypatch.setattr(taking, "switch", die)
    await driver.snapshots.take(plan.id, snapshot)
    kill(lab, plan)
    monkeypatch.undo()
    facts = await until_over(driver, plan, "k")
    assert facts.switched and facts.phase == "failed" and "ended" in facts.message, facts
    assert not Path(f"{snapshot.memory}.pending").exists()
    now = lay_over(plan, snapshot)
    await ready(driver, now)
    assert await driver.snapshots.progress(plan.id, "k") == facts, "what became of it is still known"
    first, second = await read_counters(driver, now)
    assert first - second in (0, 1) and first >= seen
    await driver.snapshots.forget(plan.id, "k")
    await driver.stop(plan.id, grace_seconds=0)


async def test_memory_that_has_no_room_is_dropped_and_the_guest_runs_on(lab: SnapshotLab, counter: bytes) -> None:
    place = lab.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        plan, driver = lab.plan("full", disks=2), lab.driver()
        await begin_counting(driver, plan, counter)
        snapshot = msgspec.structs.replace(lab.plan_snapshot(plan, "k"), memory=str(place / "memory"))
        facts = await driver.snapshots.take(plan.id, snapshot)
        facts = await until_over(driver, plan, "k")
        assert facts.phase == "failed" and facts.switched and "No space left" in facts.message, facts
        assert list(place.iterdir()) == []
        seen = await look(driver, plan)
        await look(driver, plan, after=seen + 10)
        await driver.snapshots.forget(plan.id, "k")
        await take_again(driver, lay_over(plan, snapshot), lab)
        await driver.stop(plan.id, grace_seconds=0)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("stride", [1])
async def test_a_driver_killed_at_any_step_of_a_copys_start_leaves_no_twin(
    lab: SnapshotLab, counter: bytes, stride: int
) -> None:
    plan, driver = lab.plan_with_nic(f"original-{stride}", disks=2), lab.driver()
    await begin_counting(driver, plan, counter, rest_ms=20)
    snapshot = lab.plan_snapshot(plan, "m", memory=True)
    await driver.snapshots.take(plan.id, snapshot)
    assert (await until_over(driver, plan, "m")).phase == "done"
    await driver.stop(plan.id, grace_seconds=0)
    await driver.close()
    for step in range(stride, MOST_STEPS, stride):
        name = f"copy-{stride}-{step}"
        identity = Identity(name, hashlib.md5(name.encode()).hexdigest())
        copy = msgspec.structs.replace(
            lab.plan_with_nic(name), memory=snapshot.memory, disks=lab.copy_disks(plan, name), identity=identity
        )
        with Listener(copy.nics[0].ifname) as listener:
            crashed = await crash(lab, copy, "start", step)
            driver = lab.driver()
            await driver.recover()
            found = await driver.inspect(copy.id)
            assert found.state in ("absent", "suspended", "running"), (step, found)
            await driver.start(copy)
            await ready(driver, copy)
            assert len(lab.processes(f"/{copy.id}/")) == 1
            assert await listener.hear_senders() == {copy.nics[0].mac}, step
        said = (await run(driver, copy.id, "sh", "-c", "hostname; cat /etc/machine-id"))[0].decode().split()
        assert said == [name, identity.machine_id], step
        seen = await look(driver, copy)  # it goes on from memory, and didn't boot
        await look(driver, copy, after=seen + 1)
        await driver.stop(copy.id, grace_seconds=0)
        await driver.remove(copy.id)
        assert lab.leftovers(copy.id) == [] and Path(snapshot.memory).exists()
        await driver.close()
        if not crashed:
            return
    raise AssertionError("the start never came to its end")


async def take_again(driver: QemuDriver, plan: GuestPlan, lab: SnapshotLab) -> SnapshotPlan:
    """The next one meets nothing that was left behind."""
    snapshot = lab.plan_snapshot(plan, "again", memory=True)
    await driver.snapshots.take(plan.id, snapshot)
    assert (await until_over(driver, plan, "again")).phase == "done"
    return snapshot
