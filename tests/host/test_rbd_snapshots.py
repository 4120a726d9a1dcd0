"""Snapshots of guests with disks in Ceph: of one instant over all disks, also where another is a file, whoever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from ceph_lab import needs_ceph, place_of, run_ceph
from guest_lab import MIB, crash

pytest.register_assert_rewrite(
    "tests.conformance.runtime_contract", "tests.conformance.runtime_snapshots", "snapshot_lab"
)

from snapshot_lab import SnapshotLab, begin_counting, look, read_counters
from tests.conformance.runtime_contract import ready
from tests.conformance.runtime_snapshots import until_over

from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.contracts.driver.runtime import DiskLayer, GuestDisk, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.launch.local.ceph.layout import CephPlan

pytestmark = [needs_ceph, pytest.mark.host]
MOST_STEPS = 60


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephPlan]:
    with run_ceph() as plan:
        yield plan


@pytest.fixture(scope="module")
def lab(tiny: Path) -> Iterator[SnapshotLab]:
    lab = SnapshotLab(tiny)
    yield lab
    lab.close()


@pytest.fixture(autouse=True)
async def closing(lab: SnapshotLab) -> object:
    yield
    await lab.close_drivers()


def describe(facts: VolumeFacts, serial: str) -> GuestDisk:
    return GuestDisk(facts.path, "raw", serial, rbd=facts.rbd)


class CountingLab:
    """A guest that counts on two disks: the second is in Ceph, and the first too, or it is a file."""

    def __init__(self, lab: SnapshotLab, ceph: CephPlan, name: str, *, mixed: bool) -> None:
        self.lab, self.name, self.mixed = lab, name, mixed
        self.volumes = RbdVolumes(lab.host, SystemClock(), "ceph", place_of(ceph))

    async def make(self) -> GuestPlan:
        plan = self.lab.plan(self.name, disks=1)
        root, first = plan.disks
        if not self.mixed:
            first = describe(await self.volumes.ensure(f"{self.name}-0", size_bytes=64 * MIB), "data-0")
        second = describe(await self.volumes.ensure(f"{self.name}-1", size_bytes=64 * MIB), "data-1")
        return msgspec.structs.replace(plan, disks=[root, first, second])

    async def begin(self, plan: GuestPlan, key: str) -> SnapshotPlan:
        files = msgspec.structs.replace(plan, disks=[disk for disk in plan.disks if disk.rbd is None])
        overlays = dict(self.lab.plan_snapshot(files, key).overlays)
        for disk in plan.disks:
            if disk.rbd is not None:
                overlays[disk.serial] = await self.volumes.layers.begin_layer(self.id_of(disk), self.layer(disk, key))
        return SnapshotPlan(key, overlays)

    def id_of(self, disk: GuestDisk) -> str:
        return f"{self.name}-{disk.serial[-1]}"

    def layer(self, disk: GuestDisk, key: str) -> str:
        return f"{self.id_of(disk)}-{key}"

    async def finish(self, plan: GuestPlan, key: str) -> GuestPlan:
        """The plan of a guest on what the snapshot kept; nobody has that open."""
        disks = []
        for disk in plan.disks:
            layer, new = self.layer(disk, key), f"copy-{self.name}-{key}-{disk.serial}"
            if disk.rbd is None:
                files = msgspec.structs.replace(plan, disks=[disk])
                [copy] = self.lab.copy_disks(files, f"copy-{self.name}-{key}")
                disks.append(copy)
                continue
            await self.volumes.layers.finish_layer(self.id_of(disk), layer)
            kept = KeptSnapshot(layer, layer, {"data": KeptDisk((layer,), 64 * MIB)})
            await self.volumes.layers.keep(kept)
            disks.append(describe(await self.volumes.layers.clone(new, layer, "data"), disk.serial))
        return msgspec.structs.replace(self.lab.plan(f"copy-{self.name}-{key}"), disks=disks)


def lay_over(plan: GuestPlan, snapshot: SnapshotPlan) -> GuestPlan:
    disks = []
    for disk in plan.disks:
        if disk.rbd is None:
            layers = [*disk.layers, DiskLayer(disk.path, disk.format)]
            disk = msgspec.structs.replace(disk, path=snapshot.overlays[disk.serial], format="qcow2", layers=layers)
        disks.append(disk)
    return msgspec.structs.replace(plan, disks=disks)


@pytest.mark.parametrize("mixed", [True, False])
async def test_disks_are_kept_at_one_instant_wherever_they_are(
    lab: SnapshotLab, ceph: CephPlan, counter: bytes, mixed: bool
) -> None:
    counting, driver = CountingLab(lab, ceph, f"counts-{mixed}", mixed=mixed), lab.driver()
    plan = now = await counting.make()
    await begin_counting(driver, plan, counter)
    for key in ("a", "b"):
        seen = await look(driver, plan)
        snapshot = await counting.begin(plan, key)
        facts = await driver.snapshots.take(plan.id, snapshot)
        assert (facts.phase, facts.switched, facts.consistency, facts.message) == ("done", True, "filesystem", "")
        assert await driver.snapshots.take(plan.id, snapshot) == facts, "again is the same"
        copy = await counting.finish(now, key)
        now = lay_over(now, snapshot)
        await ready(driver, copy)
        first, second = await read_counters(driver, copy)
        assert first - second in (0, 1) and first >= seen
        await driver.stop(copy.id, grace_seconds=0)
        await look(driver, plan, after=first + 1)
        await driver.snapshots.forget(plan.id, key)
    await driver.stop(plan.id, grace_seconds=0)


async def test_a_driver_killed_at_any_step_leaves_a_snapshot_or_none_and_a_guest_that_runs_on(
    lab: SnapshotLab, ceph: CephPlan, counter: bytes
) -> None:
    counting, driver = CountingLab(lab, ceph, "killed", mixed=False), lab.driver()
    plan, phases, crashed = await counting.make(), set(), True
    await begin_counting(driver, plan, counter)
    seen, now = 0, plan
    await driver.close()
    for step in range(3, MOST_STEPS, 3):
        key = f"k{step}"
        snapshot = await counting.begin(plan, key)
        file = lab.folder / "snapshot.json"
        file.write_bytes(msgspec.json.encode(snapshot))
        crashed = await crash(lab, plan, f"take:{file}", step)
        driver = lab.driver()
        await driver.recover()
        facts = await until_over(driver, plan, key)
        phases.add(facts.phase)
        inside = [
            snapshot.overlays[disk.serial].rpartition("@")[2]
            in await counting.volumes._images.list_snapshots(disk.rbd.image)
            for disk in plan.disks
            if disk.rbd is not None
        ]
        assert inside == [facts.switched] * 2, (step, facts)
        if facts.phase == "none":
            for disk in plan.disks:
                if disk.rbd is not None:
                    await counting.volumes.layers.undo_layer(counting.id_of(disk), counting.layer(disk, key))
        else:
            await counting.finish(now, key)
            now = lay_over(now, snapshot)
            await driver.snapshots.forget(plan.id, key)
        seen = await look(driver, plan, after=seen + 1)
        await driver.close()
        if not crashed:
            break
    assert not crashed and phases >= {"none", "done"}
