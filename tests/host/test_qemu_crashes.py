"""The QEMU driver killed at every step, and QEMU itself killed at the worst moments: nothing is lost, doubled or half."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab, crash

from weft.contracts.driver.runtime import GuestFacts, GuestPlan
from weft.drivers.runtime.qemu import saved_memory
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.record import disk_times
from weft.objects.errors import DriverFailed, Unavailable

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run, until

pytestmark = pytest.mark.host
MOST_STEPS = 40


@pytest.fixture
async def plan(lab: GuestLab) -> AsyncIterator[GuestPlan]:
    plan = lab.plan("crash", machine="microvm")
    yield plan
    await lab.close_drivers()  # of a test that failed: a monitor serves one at a time
    driver = lab.driver()
    await driver.recover()
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    await driver.close()


async def recovered(lab: GuestLab, plan: GuestPlan) -> tuple[QemuDriver, GuestFacts]:
    driver = lab.driver()
    await driver.recover()
    return driver, await driver.inspect(plan.id)


async def only_process(lab: GuestLab, plan: GuestPlan, facts: GuestFacts, step: int) -> None:
    """The daemon alone is left; the process that forked it ends a moment after it is there."""
    for _ in range(1200):
        if lab.processes(plan.id) == [facts.pid]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"step {step}: {lab.processes(plan.id)} run, not {facts.pid} alone")


async def test_a_driver_killed_at_any_step_of_a_start_leaves_one_guest_or_none(lab: GuestLab, plan: GuestPlan) -> None:
    for step in range(1, MOST_STEPS):
        crashed = await crash(lab, plan, "start", step)
        driver, found = await recovered(lab, plan)
        assert found.state in ("absent", "running", "failed"), (step, found)
        started = await driver.start(plan)
        await only_process(lab, plan, started, step)
        if not crashed or step == 3:
            await ready(driver, plan)
        await driver.stop(plan.id, grace_seconds=0)
        await driver.remove(plan.id)
        await driver.close()
        assert lab.leftovers(plan.id) == []
        if not crashed:
            assert step > 4
            return
    raise AssertionError("the start never came to its end")


@pytest.mark.long
async def test_a_driver_killed_at_any_step_of_a_suspension_leaves_it_running_or_suspended(
    lab: GuestLab, plan: GuestPlan
) -> None:
    driver = lab.driver()
    boot_id = (await ready(driver, plan)).boot_id
    await run(driver, plan.id, "sh", "-c", "echo kept > /dev/shm/mark")
    await driver.close()
    seen = set()
    for step in range(1, MOST_STEPS):
        crashed = await crash(lab, plan, "suspend", step)
        driver, found = await recovered(lab, plan)
        assert found.state in ("running", "suspended"), (step, found)
        seen.add(found.state)
        assert len(lab.processes(plan.id)) == (found.state == "running"), step
        assert (await ready(driver, plan)).boot_id == boot_id, step
        assert (await run(driver, plan.id, "cat", "/dev/shm/mark"))[0] == b"kept\n"
        await driver.close()
        if not crashed:
            assert seen == {"running", "suspended"}
            return
    raise AssertionError("the suspension never came to its end")


@pytest.mark.long
async def test_a_driver_killed_at_any_step_of_a_resumption_loses_no_memory(lab: GuestLab, plan: GuestPlan) -> None:
    driver = lab.driver()
    boot_id = (await ready(driver, plan)).boot_id
    for step in range(1, MOST_STEPS):
        await driver.suspend(plan.id)
        await driver.close()
        crashed = await crash(lab, plan, "resume", step)
        driver, found = await recovered(lab, plan)
        assert found.state in ("running", "suspended"), (step, found)
        assert len(lab.processes(plan.id)) == (found.state == "running"), step
        assert (await ready(driver, plan)).boot_id == boot_id, step
        if not crashed:
            await driver.close()
            return
    raise AssertionError("the resumption never came to its end")


async def test_driver_and_guest_killed_in_a_resumption_never_bring_old_memory_to_a_newer_disk(
    lab: GuestLab, plan: GuestPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it ran: suspended still. Killed after it ran and wrote: the memory is stale, and is not used."""
    driver = lab.driver()
    boot_id = (await ready(driver, plan)).boot_id
    await run(driver, plan.id, "sh", "-c", "(while :; do date > /root/now; sync; sleep 0.1; done) >/dev/null 2>&1 &")
    await driver.suspend(plan.id)
    written = disk_times(plan)

    async def crash_here(guest: Guest) -> None:
        raise asyncio.CancelledError

    real = saved_memory.forget_memory
    monkeypatch.setattr(saved_memory, "forget_memory", crash_here)
    monkeypatch.setattr("weft.drivers.runtime.qemu.start.undo_launch", crash_undo)
    with pytest.raises(asyncio.CancelledError):
        await driver.start(plan)
    await driver.close()
    await end_tasks()
    (pid,) = lab.processes(plan.id)
    async with asyncio.timeout(60):
        while disk_times(plan) == written:  # it runs, and writes
            await asyncio.sleep(0.05)

    async def end_first(guest: Guest, **_: object) -> None:
        os.kill(pid, signal.SIGKILL)
        await guest.ended.wait()
        raise Unavailable("it ended while it was taken up")

    monkeypatch.setattr(saved_memory, "forget_memory", real)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Guest, "connect", end_first)
        driver, found = await recovered(lab, plan)
    loops = [task for task in asyncio.all_tasks() if "GuestAgents" in repr(task)]
    assert not loops, "they would take the only connection that the next machine accepts"
    found = await until(driver, plan.id, lambda facts: facts.state != "running")
    assert (found.state, found.reason) == ("failed", "killed")
    assert (await ready(driver, plan)).boot_id != boot_id
    await driver.close()


async def end_tasks() -> None:
    """With a driver that is killed goes what kept its connections to a guest it had in hand: left here, it would take the only
    one that the next machine accepts."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def crash_undo(*_: object) -> None:
    """A driver that was killed undoes nothing."""
    raise asyncio.CancelledError


async def test_a_guest_killed_while_it_is_saved_has_failed_and_starts_again(
    lab: GuestLab, plan: GuestPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = lab.driver()
    facts = await ready(driver, plan)

    async def kill_then_wait(guest: Guest, qmp: object, step: str) -> None:
        lab.kill(driver, facts)
        await real(guest, qmp, step)  # type: ignore[arg-type]

    real = saved_memory.finish_migration
    monkeypatch.setattr(saved_memory, "finish_migration", kill_then_wait)
    with pytest.raises(DriverFailed):
        await driver.suspend(plan.id)
    ended = await until(driver, plan.id, lambda facts: facts.state != "running")
    assert (ended.state, ended.reason) == ("failed", "killed")
    assert not list(Path(lab.host.state_dir, "guests", plan.id).glob("memory*"))
    monkeypatch.undo()
    assert (await ready(driver, plan)).boot_id != facts.boot_id
    await driver.close()


async def test_damaged_memory_is_refused_and_kept(lab: GuestLab, plan: GuestPlan) -> None:
    driver = lab.driver()
    boot_id = (await ready(driver, plan)).boot_id
    await driver.suspend(plan.id)
    saved = Path(lab.host.state_dir, "guests", plan.id, "memory")
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DriverFailed):
        await driver.start(plan)
    assert (await driver.inspect(plan.id)).state == "suspended"
    assert lab.processes(plan.id) == []
    saved.write_bytes(whole)
    assert (await ready(driver, plan)).boot_id == boot_id
    await driver.close()


async def test_memory_of_another_machine_is_refused(lab: GuestLab, plan: GuestPlan) -> None:
    driver = lab.driver()
    await ready(driver, plan)
    await driver.suspend(plan.id)
    with pytest.raises(DriverFailed, match="machine of another shape"):
        await driver.start(msgspec.structs.replace(plan, machine="q35"))
    assert (await driver.inspect(plan.id)).state == "suspended"
    await driver.close()
