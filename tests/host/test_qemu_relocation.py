"""A running guest's disk moves to another file while it is written to; whoever is killed on the way, one file holds it all."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab, make_disk

from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.drivers.runtime.qemu.disk_relocation import QemuRelocations
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.objects.errors import DriverFailed

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

pytestmark = pytest.mark.host
READ = "echo 3 > /proc/sys/vm/drop_caches; sha256sum /root/data"


async def begin_writing(driver: QemuDriver, plan: GuestPlan, verifier: bytes) -> None:
    await ready(driver, plan)
    await run(driver, plan.id, "sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=verifier)
    await run(driver, plan.id, "sh", "-c", "/root/verifier 4 4000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &")


async def look(driver: QemuDriver, plan: GuestPlan, *, after: int = 0) -> int:
    async with asyncio.timeout(60):
        while True:
            said = (await run(driver, plan.id, "sh", "-c", "cat /dev/shm/verdict 2>/dev/null || true"))[0].decode()
            if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                assert found[2] == "0", said
                if int(found[1]) > after:
                    return int(found[1])
            await asyncio.sleep(0.1)


async def until(driver: QemuDriver, plan: GuestPlan, key: str, *phases: str) -> None:
    async with asyncio.timeout(60):
        while (facts := await driver.relocations.progress(plan.id, key)).phase not in phases:
            assert facts.phase != "failed", facts
            await asyncio.sleep(0.05)


def elsewhere(lab: GuestLab, plan: GuestPlan, name: str) -> GuestDisk:
    """An empty disk for what is on the guest's root."""
    disk, path = plan.disks[0], lab.folder / f"{name}.qcow2"
    assert disk.base is not None
    make_disk(path, backing=Path(disk.base))
    return msgspec.structs.replace(disk, path=str(path))


def kill(lab: GuestLab, plan: GuestPlan) -> None:
    for pid in lab.processes(f"/{plan.id}/"):
        os.kill(pid, signal.SIGKILL)


def open_files(lab: GuestLab, plan: GuestPlan) -> set[str]:
    (pid,) = lab.processes(f"/{plan.id}/")
    return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


@pytest.mark.long
async def test_a_disk_moves_there_and_back_while_it_is_written_to(lab: GuestLab, verifier: bytes) -> None:
    plan, driver = lab.plan("there-and-back"), lab.driver()
    await begin_writing(driver, plan, verifier)
    fill = "dd if=/dev/urandom of=/root/data bs=1M count=4 2>/dev/null; sync"
    whole, seen = (await run(driver, plan.id, "sh", "-c", f"{fill}; {READ}"))[0], await look(driver, plan)
    now = plan.disks[0]
    for turn in ("there", "back", "again"):
        there = elsewhere(lab, plan, f"rel-{turn}")
        await driver.relocations.begin(plan.id, turn, there)
        await until(driver, plan, turn, "ready")
        await driver.close()
        driver = lab.driver()  # another agent leads on
        await driver.recover()
        await driver.relocations.pivot(plan.id, turn)
        await driver.relocations.pivot(plan.id, turn)
        assert (await driver.relocations.progress(plan.id, turn)).phase == "there"
        assert there.path in open_files(lab, plan) and now.path not in open_files(lab, plan)
        Path(now.path).unlink()
        now = there
        await driver.relocations.forget(plan.id, turn)
        seen = await look(driver, plan, after=seen + 1)
        assert (await run(driver, plan.id, "sh", "-c", READ))[0] == whole
    kill(lab, plan)
    await asyncio.sleep(0.2)
    plan = msgspec.structs.replace(plan, disks=[now])
    await ready(driver, plan)
    assert (await run(driver, plan.id, "sh", "-c", READ))[0] == whole
    await driver.stop(plan.id, grace_seconds=0)


@pytest.mark.parametrize(
    ("step", "victim"),
    [
        ("copying", "machine"),
        ("switched", "driver"),
        pytest.param("copying", "driver", marks=pytest.mark.long),
        pytest.param("switched", "machine", marks=pytest.mark.long),
    ],
)
async def test_whoever_is_killed_the_file_that_is_said_holds_all(
    lab: GuestLab, verifier: bytes, monkeypatch: pytest.MonkeyPatch, victim: str, step: str
) -> None:
    plan, driver = lab.plan(f"{victim[:3]}-{step[:3]}"), lab.driver()
    await begin_writing(driver, plan, verifier)
    fill = "dd if=/dev/urandom of=/root/data bs=1M count=4 2>/dev/null; sync"
    whole, seen = (await run(driver, plan.id, "sh", "-c", f"{fill}; {READ}"))[0], await look(driver, plan)
    there = elsewhere(lab, plan, f"rel-{victim}-{step}")
    await driver.relocations.begin(plan.id, "k", there, 1 << 20 if step == "copying" else 0)
    switch = QemuRelocations._switch
    if step == "switched":
        await until(driver, plan, "k", "ready")

        async def die(*given: object) -> None:
            await switch(*given)  # type: ignore[arg-type]
            if victim == "machine":
                kill(lab, plan)
            raise asyncio.CancelledError

        monkeypatch.setattr(QemuRelocations, "_switch", die)
        with pytest.raises(asyncio.CancelledError):
            await driver.relocations.pivot(plan.id, "k")
        monkeypatch.undo()
    elif victim == "machine":
        kill(lab, plan)
    await driver.close()
    driver = lab.driver()
    await driver.recover()
    if victim == "driver":
        if step == "switched":
            assert (await driver.relocations.progress(plan.id, "k")).phase == "pivoting"
            await driver.relocations.pivot(plan.id, "k")
            Path(plan.disks[0].path).unlink()
        else:
            assert (await driver.relocations.progress(plan.id, "k")).phase == "copying"
            await driver.relocations.cancel(plan.id, "k")
            assert there.path not in open_files(lab, plan)
            Path(there.path).unlink()
        await look(driver, plan, after=seen + 1)
    else:
        await asyncio.sleep(0.2)
        assert (await driver.relocations.progress(plan.id, "k")).phase == "failed", "the old one holds all"
        await driver.relocations.cancel(plan.id, "k")
        Path(there.path).unlink()
        await ready(driver, plan)
    assert (await run(driver, plan.id, "sh", "-c", READ))[0] == whole
    await driver.stop(plan.id, grace_seconds=0)


async def test_a_copy_that_has_no_room_fails_and_the_guest_goes_on(lab: GuestLab, verifier: bytes) -> None:
    place = lab.folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        plan, driver = lab.plan("no-room"), lab.driver()
        await begin_writing(driver, plan, verifier)
        await run(driver, plan.id, "sh", "-c", "dd if=/dev/urandom of=/root/data bs=1M count=6 2>/dev/null; sync")
        seen, there = await look(driver, plan), elsewhere(lab, plan, "small/root")
        await driver.relocations.begin(plan.id, "k", there)
        async with asyncio.timeout(60):
            while (facts := await driver.relocations.progress(plan.id, "k")).phase != "failed":
                await asyncio.sleep(0.05)
        assert "No space left" in facts.message
        with pytest.raises(DriverFailed):
            await driver.relocations.pivot(plan.id, "k")
        await driver.relocations.cancel(plan.id, "k")
        await look(driver, plan, after=seen + 1)
        await driver.stop(plan.id, grace_seconds=0)
    finally:
        await driver.close()
        subprocess.run(["umount", "-l", str(place)], check=True)
