"""Guests that count, snapshots of them by weft and by hand, and copies of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from tests.conformance.runtime_contract import ready

from benchmarks.measurement import ROOT
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu.devices.block_nodes import find_nodes
from weft.drivers.runtime.qemu.process.confinement import choose_user
from weft.drivers.runtime.qemu.snapshot.saving import await_flow, prepare_saving

sys.path.insert(0, str(ROOT / "tests" / "host"))

from guest_lab import unpack_tiny
from snapshot_lab import SnapshotLab, begin_counting, lay_over, look

MIB = 1 << 20


class Taken(msgspec.Struct):
    """Seconds: how long the guest stood still, and until all was kept."""

    pause: float
    whole: float


class Rig:
    """One node. Guests go by their names; ``plans`` has their disks as they are by now."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="weft-bench-")
        self.lab = SnapshotLab(unpack_tiny(Path(self.folder.name)))
        self.driver, self.plans = self.lab.driver(), dict[str, GuestPlan]()
        program = Path(self.folder.name, "counter")
        source = ROOT / "tests" / "host" / "counter.c"
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
        self.program = program.read_bytes()

    async def close(self) -> None:
        await self.lab.close_drivers()
        self.lab.close()
        self.folder.cleanup()

    async def begin(self, name: str) -> str:
        self.plans[name] = self.lab.plan(name, memory_bytes=256 * MIB, disks=2)
        await begin_counting(self.driver, self.plans[name], self.program)
        return name

    async def end(self, name: str) -> None:
        await self.stop(self.plans.pop(name))

    async def stop(self, plan: GuestPlan) -> None:
        await self.driver.stop(plan.id, grace_seconds=0)
        await self.driver.remove(plan.id)

    async def answer(self, plan: GuestPlan) -> None:
        await ready(self.driver, plan)

    async def take(self, name: str, key: str, *, memory: bool = False, freeze: bool = False) -> Taken:
        snapshot = self.lab.plan_snapshot(self.plans[name], key, memory=memory, freeze=freeze)
        began = time.perf_counter()
        facts = await self.driver.snapshots.take(self.plans[name].id, snapshot)
        while facts.phase not in ("done", "failed"):
            await asyncio.sleep(0.005)
            facts = await self.driver.snapshots.progress(self.plans[name].id, key)
        whole = time.perf_counter() - began
        if facts.phase == "failed" or facts.message:
            raise SystemExit(f"a snapshot failed: {facts.message}")
        await self.driver.snapshots.forget(self.plans[name].id, key)
        self.plans[name] = lay_over(self.plans[name], snapshot)
        return Taken(facts.pause_ms / 1000, whole)

    async def keep(self, name: str, key: str) -> SnapshotPlan:
        """With memory; the guest goes on, and ``plans`` keeps its disks as they were."""
        snapshot = self.lab.plan_snapshot(self.plans[name], key, memory=True)
        before = self.plans[name]
        await self.take(name, key, memory=True)
        self.plans[name] = before
        return snapshot

    async def take_bare(self, name: str, key: str, *, memory: bool = False) -> Taken:
        """QEMU's commands for the same, and nothing written down."""
        plan = self.plans[name]
        guest = await self.driver._guests.get(plan.id)
        qmp, facts = guest.monitor(), await self.driver._working()
        snapshot = self.lab.plan_snapshot(plan, key, memory=memory)
        present, actions = await find_nodes(qmp), []
        began = time.perf_counter()
        for serial, path in snapshot.overlays.items():
            node = f"{key}-{serial}"
            async with qmp.lend(path, os.O_RDWR) as file:
                how: dict[str, Any] = {"node-name": node, "backing": None, "discard": "unmap"}
                await qmp.execute("blockdev-add", driver="qcow2", file={"driver": "file", "filename": file}, **how)
            actions.append({"type": "blockdev-snapshot", "data": {"node": present[serial], "overlay": node}})
        if not memory:
            paused = time.perf_counter()
            await qmp.execute("transaction", actions=actions)
            ended = time.perf_counter()
            return Taken(ended - paused, ended - began)
        if not await prepare_saving(guest, choose_user(plan.id, facts.users)):
            raise SystemExit("this machine's QEMU can't save memory while its guest runs on")
        paused = time.perf_counter()
        await qmp.execute("stop")
        await qmp.execute("transaction", actions=actions)
        async with qmp.lend(snapshot.memory, os.O_WRONLY | os.O_CREAT) as file:
            await qmp.execute("migrate", uri=f"file:{file}")
            await await_flow(guest, qmp)
        await qmp.execute("cont")
        pause = time.perf_counter() - paused
        while (status := (await qmp.execute("query-migrate"))["status"]) != "completed":
            if status == "failed":
                raise SystemExit("a snapshot by hand failed")
            await asyncio.sleep(0.005)
        return Taken(pause, time.perf_counter() - began)

    async def fits(self, name: str, key: str, *, memory: bool) -> bool:
        """Whether a snapshot's disks are of one instant; and with memory, whether a copy that goes on finds no mistake."""
        before = self.plans[name]
        await self.take(name, key, memory=memory)
        first, second = (_read_counter(disk.path) for disk in before.disks[1:])
        if not memory:
            return first - second in (0, 1)
        copy = self.copy(before, f"{name}-{key}-copy", str(self.lab.folder / f"{name}-{key}.memory"))
        await self.answer(copy)
        try:
            now = await look(self.driver, copy)  # fails for one that has found a mistake
            await look(self.driver, copy, after=now + 2)
        except AssertionError:
            return False
        finally:
            await self.stop(copy)
            Path(copy.memory).unlink()
        return first - second in (0, 1) and first - now <= 1

    def copy(self, plan: GuestPlan, name: str, memory: str) -> GuestPlan:
        """Another guest on those disks as they were."""
        identity = Identity(name, hashlib.md5(name.encode()).hexdigest())
        empty = self.lab.plan(name, memory_bytes=plan.memory_bytes)
        disks = self.lab.copy_disks(plan, name)
        return msgspec.structs.replace(empty, disks=disks, memory=memory, identity=identity)


def _read_counter(layer: str) -> int:
    words = ["qemu-io", "-f", "qcow2", "-r", "-U", "-c", "read -v 0 512", layer]
    line = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    found = re.match(r"0+: +((?:[0-9a-f]{2} ){8})", line)
    assert found is not None, line
    return int.from_bytes(bytes.fromhex(found[1]), "little")
