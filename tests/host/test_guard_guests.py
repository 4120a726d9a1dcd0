"""The guard of a node and a real guest in its control group: the guest is ended in time, though agent and driver are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from guest_lab import GuestLab

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.guard.driver import GuestGuard
from weft.drivers.runtime.qemu.driver import QemuDriver

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import until

pytestmark = pytest.mark.host


def find_guards(run_dir: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"{run_dir}/guard".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


async def test_a_real_guest_ends_at_its_time_after_kill_9_of_the_process_that_serves(lab: GuestLab) -> None:
    driver, guard, plan = lab.driver(), GuestGuard(lab.host, SystemClock()), lab.plan("held", machine="microvm")
    try:
        assert await guard.check() == ""
        await guard.renew({plan.id: guard.read_time() + 10_000.0})
        await driver.start(plan)
        await _end_by_the_guard(lab, driver, guard, plan)
    finally:
        with contextlib.suppress(Exception):
            await guard.drop([plan.id])
        await driver.remove(plan.id)
        await lab.close_drivers()
    async with asyncio.timeout(60):
        while find_guards(lab.host.run_dir):
            await asyncio.sleep(0.05)


async def _end_by_the_guard(lab: GuestLab, driver: QemuDriver, guard: GuestGuard, plan: GuestPlan) -> None:
    assert lab.processes(plan.id), "it runs"
    await guard.renew({plan.id: guard.read_time() + 1.0})
    os.kill(max(find_guards(lab.host.run_dir)), signal.SIGKILL)
    await until(driver, plan.id, lambda facts: facts.state not in ("starting", "running"))
    assert not lab.processes(plan.id)
    assert (await guard.read())[plan.id].ended_at > 0
