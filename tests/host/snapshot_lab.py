"""Guests whose disks stand on layers, for tests of snapshots: overlays, copies, and a program that notices what doesn't fit."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path

import msgspec
from guest_lab import GuestLab, make_disk
from tests.conformance.runtime_contract import ready, run

from weft.contracts.driver.runtime import DiskLayer, GuestDisk, GuestPlan
from weft.contracts.driver.snapshot import SnapshotFacts, SnapshotPlan
from weft.drivers.runtime.qemu.driver import QemuDriver

MIB = 1 << 20
DISK_BYTES = 64 * MIB
ROOT_BYTES = 1 << 30


def plan_snapshot(
    lab: GuestLab, plan: GuestPlan, key: str, *, memory: bool = False, freeze: bool = True
) -> SnapshotPlan:
    """With an empty overlay for each disk."""
    overlays = {}
    for disk in plan.disks:
        path = lab.folder / f"{plan.name}-{disk.serial}-{key}.qcow2"
        if not path.exists():
            make_disk(path, size_bytes=DISK_BYTES if disk.base is None else ROOT_BYTES)
        overlays[disk.serial] = str(path)
    return SnapshotPlan(key, overlays, str(lab.folder / f"{plan.name}-{key}.memory") if memory else "", freeze)


def lay_over(plan: GuestPlan, snapshot: SnapshotPlan) -> GuestPlan:
    """The guest's plan once its disks have switched."""
    return msgspec.structs.replace(plan, disks=[_stand(disk, snapshot.overlays[disk.serial]) for disk in plan.disks])


def copy_disks(lab: GuestLab, plan: GuestPlan, name: str) -> list[GuestDisk]:
    """New disks that stand on those of ``plan``, which nobody writes to any more."""
    copies = []
    for disk in plan.disks:
        path = lab.folder / f"{name}-{disk.serial}.qcow2"
        make_disk(path, size_bytes=DISK_BYTES if disk.base is None else ROOT_BYTES)
        copies.append(_stand(disk, str(path)))
    return copies


def _stand(disk: GuestDisk, path: str) -> GuestDisk:
    return msgspec.structs.replace(
        disk, path=path, format="qcow2", layers=[*disk.layers, DiskLayer(disk.path, disk.format)]
    )


async def until_over(driver: QemuDriver, plan: GuestPlan, key: str) -> SnapshotFacts:
    async with asyncio.timeout(120):
        while (facts := await driver.snapshots.progress(plan.id, key)).phase not in ("none", "done", "failed"):
            await asyncio.sleep(0.05)
    return facts


async def begin_counting(driver: QemuDriver, plan: GuestPlan, counter: bytes) -> None:
    await ready(driver, plan)
    await run(driver, plan.id, "sh", "-c", "cat > /dev/shm/counter; chmod +x /dev/shm/counter", stdin=counter)
    await run(driver, plan.id, "sh", "-c", "/dev/shm/counter /dev/vdb /dev/vdc /dev/shm/said >/dev/null 2>&1 &")
    await look(driver, plan, after=3)


async def look(driver: QemuDriver, plan: GuestPlan, *, after: int = 0) -> int:
    """Its round; fails where its disks and its memory have ever disagreed."""
    async with asyncio.timeout(60):
        while True:
            said = (await run(driver, plan.id, "sh", "-c", "cat /dev/shm/said 2>/dev/null || true"))[0].decode()
            if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                assert found[2] == "0", said
                if int(found[1]) > after:
                    return int(found[1])
            await asyncio.sleep(0.05)


async def read_counters(driver: QemuDriver, plan: GuestPlan) -> tuple[int, int]:
    """What stands on its two disks, of a guest that has booted from them."""
    read = "for disk in vdb vdc; do dd if=/dev/$disk bs=8 count=1 2>/dev/null; done"
    first, second = struct.unpack("<QQ", (await run(driver, plan.id, "sh", "-c", read))[0])
    return first, second


def forget_files(snapshot: SnapshotPlan) -> None:
    for path in (*snapshot.overlays.values(), snapshot.memory):
        if path:
            Path(path).unlink(missing_ok=True)
