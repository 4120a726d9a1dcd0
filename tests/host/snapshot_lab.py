"""Guests whose disks stand on layers, for tests of snapshots: overlays, copies, and a program that notices what doesn't fit."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import select
import socket
import struct
import subprocess
from pathlib import Path

import msgspec
from guest_lab import GuestLab, make_disk
from tests.conformance.runtime_contract import ready, run

from weft.contracts.driver.runtime import DiskLayer, GuestDisk, GuestNic, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu.driver import QemuDriver


def measure(disk: GuestDisk) -> int:
    """Its size as its guest sees it."""
    words = ["qemu-img", "info", "-U", "--output=json", disk.base or disk.path]
    return int(json.loads(subprocess.run(words, check=True, capture_output=True).stdout)["virtual-size"])


class SnapshotLab(GuestLab):
    links: list[str]

    def __init__(self, tiny: Path) -> None:
        super().__init__(tiny)
        self.links = []

    def plan_with_nic(self, name: str, disks: int = 0) -> GuestPlan:
        """On a tap of its own that leads nowhere."""
        link = f"ts{hashlib.md5(f'{self.folder}/{name}'.encode()).hexdigest()[:10]}"
        if not Path("/sys/class/net", link).exists():
            subprocess.run(["ip", "tuntap", "add", "dev", link, "mode", "tap"], check=True)
            subprocess.run(["ip", "link", "set", link, "up"], check=True)
            self.links.append(link)
        nic = GuestNic(link, f"52:54:00:{link[2:4]}:{link[4:6]}:{link[6:8]}", 1400)
        return msgspec.structs.replace(self.plan(name, disks=disks), nics=[nic])

    def close(self) -> None:
        super().close()
        for link in self.links:
            subprocess.run(["ip", "link", "del", link], check=False)

    def plan_snapshot(self, plan: GuestPlan, key: str, *, memory: bool = False, freeze: bool = True) -> SnapshotPlan:
        """With an empty overlay for each disk."""
        overlays = {}
        for disk in plan.disks:
            path = self.folder / f"{plan.name}-{disk.serial}-{key}.qcow2"
            if not path.exists():
                make_disk(path, size_bytes=measure(disk))
            overlays[disk.serial] = str(path)
        return SnapshotPlan(key, overlays, str(self.folder / f"{plan.name}-{key}.memory") if memory else "", freeze)

    def copy_disks(self, plan: GuestPlan, name: str) -> list[GuestDisk]:
        """New disks that stand on those of ``plan``, which nobody writes to any more."""
        copies = []
        for disk in plan.disks:
            path = self.folder / f"{name}-{disk.serial}.qcow2"
            make_disk(path, size_bytes=measure(disk))
            copies.append(_stand(disk, str(path)))
        return copies


def lay_over(plan: GuestPlan, snapshot: SnapshotPlan) -> GuestPlan:
    """The guest's plan once its disks have switched."""
    return msgspec.structs.replace(plan, disks=[_stand(disk, snapshot.overlays[disk.serial]) for disk in plan.disks])


def _stand(disk: GuestDisk, path: str) -> GuestDisk:
    return msgspec.structs.replace(
        disk, path=path, format="qcow2", layers=[*disk.layers, DiskLayer(disk.path, disk.format)]
    )


async def begin_counting(driver: QemuDriver, plan: GuestPlan, counter: bytes, *, rest_ms: int = 2) -> None:
    """``rest_ms`` between two rounds: short where the instant counts, which takes most of a processor."""
    await ready(driver, plan)
    await run(driver, plan.id, "sh", "-c", "cat > /dev/shm/counter; chmod +x /dev/shm/counter", stdin=counter)
    await run(
        driver, plan.id, "sh", "-c", f"/dev/shm/counter /dev/vdb /dev/vdc /dev/shm/said {rest_ms} >/dev/null 2>&1 &"
    )
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


class Listener:
    """Hears what leaves a guest through its tap."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((link, 3))
        self._socket.setblocking(False)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def hear_senders(self) -> set[str]:
        """The MACs that have sent anything until now, once there is one; without the host's own frames."""
        senders: set[str] = set()
        async with asyncio.timeout(120):
            while not senders or self._frames_wait():
                try:
                    frame, (_, _, kind, _, _) = self._socket.recvfrom(65536)
                except BlockingIOError:
                    await asyncio.sleep(0.05)
                    continue
                if kind != socket.PACKET_OUTGOING:
                    senders.add(frame[6:12].hex(":"))
        return senders

    def _frames_wait(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])
