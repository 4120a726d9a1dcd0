"""A guest that floods its console and its disk: it fills what is its own, and its neighbour doesn't notice."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from guest_lab import MIB, GuestLab

from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.runtime.qemu import driver as qemu

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run, start_command

pytestmark = pytest.mark.host


@pytest.mark.long
async def test_a_guest_that_floods_its_console_and_its_disk_hurts_only_itself(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "CONSOLE_LOG_BYTES", 64 << 10)
    monkeypatch.setattr(qemu, "CONSOLE_LOG_KEPT_BYTES", 8 << 10)
    monkeypatch.setattr(qemu, "CONSOLE_LOG_CHECK_SECONDS", 0.1)
    driver = lab.driver()
    await driver.recover()
    wild, calm = (lab.plan(name, memory_bytes=192 * MIB, disks=1) for name in ("wild", "calm"))
    try:
        await ready(driver, wild)
        await ready(driver, calm)
        log = Path(driver.console_log(wild.id))
        await start_command(driver, wild.id, ExecRequest(argv=["sh", "-c", "yes flood >/dev/console"]))
        filling = await run(driver, wild.id, "dd", "if=/dev/zero", "of=/dev/vdb", "bs=1M")
        assert filling[2] != 0 and b"space" in filling[1], "the disk has an end"

        disk = wild.disks[1].path
        info = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", disk], capture_output=True, check=True, timeout=20
        )
        assert os.stat(disk).st_blocks * 512 <= json.loads(info.stdout)["virtual-size"] + 4 * MIB
        written, largest, began_anew = 0, 0, False
        async with asyncio.timeout(60):
            while not began_anew:  # it was cut, and its newest lines were kept
                size = log.stat().st_size
                largest, began_anew, written = max(largest, size), size < written, size
                await asyncio.sleep(0.02)
        assert largest < 8 * MIB and b"flood" in log.read_bytes()
        assert await run(driver, calm.id, "echo", "calm") == (b"calm\n", b"", 0)
        assert (await driver.inspect(wild.id)).state == "running"
    finally:
        for plan in (wild, calm):
            await driver.stop(plan.id, grace_seconds=0)
            await driver.remove(plan.id)
        await driver.close()
