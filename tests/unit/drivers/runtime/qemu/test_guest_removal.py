"""The removal of a machine's folder: nothing is written to it any more once it has begun."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import BootDisk, GuestPlan
from weft.drivers.linux.processes import inspect_process
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.record import GuestEnd, GuestRecord


def make_plan(name: str) -> GuestPlan:
    return GuestPlan(
        id=name,
        uid="00000000-0000-4000-8000-000000000001",
        name=name,
        incarnation=1,
        machine="q35",
        cpu=1,
        vcpus=1,
        memory_bytes=1 << 26,
        boot=BootDisk("bios"),
        disks=[],
        nics=[],
        hostname=name,
    )


async def test_its_folder_goes_though_the_consoles_are_looked_at_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, unlink = asyncio.get_running_loop(), os.unlink
    where = str(tmp_path)
    driver = QemuDriver(
        Host("n1", "uid", where, where, "w", "", "", "weft-test-removal", Capacity(1, 1 << 30, 1 << 30))
    )
    guests = driver._guests
    guests.add(GuestRecord(make_plan("other"), "tcg", "boot", 1.0, process=inspect_process(os.getpid())))  # it runs
    gone = guests.add(GuestRecord(make_plan("gone"), "tcg", "boot", 1.0, end=GuestEnd("stopped", "stopRequested")))
    await gone.save_record()
    gone.paths.console_log.write_bytes(b"login:")
    looks: list[bool] = []

    async def look_at_consoles() -> None:
        driver._notify()
        for _ in range(3):
            await asyncio.sleep(0)
        looks.append(driver._tending is not None)

    def unlink_late(path: Any, **options: Any) -> None:
        """The folder was listed, and the first file of it goes after the next look."""
        if "dir_fd" in options and not looks:
            asyncio.run_coroutine_threadsafe(look_at_consoles(), loop).result(60)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unlink_late)
    try:
        await driver.remove("gone")
        assert looks == [True] and not gone.paths.state.exists()
    finally:
        await driver.close()
