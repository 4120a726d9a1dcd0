"""The middle one of a running guest's snapshots is deleted: its layer goes, and disk and other snapshots stay what they are."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from guest_lab import GuestLab
from tests.scenario.agent_lab import StubServer, make_allocation

from weft.agent.server.reporter import Reporter
from weft.agent.snapshot import absorption
from weft.agent.snapshot.absorption import Absorption
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.table import AllocationTable
from weft.agent.tasks import Tasks
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.contracts.driver.runtime import DiskLayer, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.record import find_own_file
from weft.drivers.runtime.qemu.snapshot import absorb
from weft.drivers.runtime.qemu.snapshot import driver as snapshots
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.identity import short_id

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run, until

pytestmark = pytest.mark.host
READ = "echo 3 > /proc/sys/vm/drop_caches; cd /root; sha256sum data-*"


class SnapshotLab:
    """A guest whose root disk is in a pool, and the parts of its node's agent that look after its snapshots."""

    def __init__(self, lab: GuestLab, name: str) -> None:
        self.lab, self.clock, self.envelope = (
            lab,
            SystemClock(),
            make_allocation(name, uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{lab.folder}/{name}"))),
        )
        self.id = short_id(self.envelope.uid)
        self.volumes = DirectoryVolumes(lab.host)
        self.table = AllocationTable()
        self.pools = Pools(self.volumes, {}, self.clock, asyncio.Event())
        self.reporter = Reporter("n1", StubServer(), self.clock, asyncio.Event())  # type: ignore[arg-type]
        self.kept = KeptSnapshots(lab.host.state_dir, self.pools, self.table, self.reporter, self.clock, Tasks())
        self.base = str(lab.tiny / lab.manifest.disk)

    async def plan(self, disk: str = "") -> GuestPlan:
        """The guest on its disk as its pool has it now, or on another volume's."""
        plan, id_ = self.lab.plan(self.id), disk or self.id
        facts = await self.volumes.ensure(id_, size_bytes=0, base=self.base, base_format=self.lab.manifest.disk_format)
        layers = [DiskLayer(one.path, one.format) for one in await self.volumes.layers.list_layers(id_)]
        root = msgspec.structs.replace(plan.disks[0], path=facts.path, layers=layers)
        return msgspec.structs.replace(
            plan, id=id_, uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, id_)) if disk else self.envelope.uid, disks=[root]
        )

    async def take(self, driver: QemuDriver, number: int, *, running: bool = True) -> None:
        layers, layer = self.volumes.layers, f"{self.id}-{number}"
        path = await layers.begin_layer(self.id, layer)
        if running:
            facts = await driver.snapshots.take(self.id, SnapshotPlan(f"key-{number}", {"root": path}, freeze=False))
            assert facts.switched
        await layers.finish_layer(self.id, layer)
        if running:
            await driver.snapshots.forget(self.id, f"key-{number}")
        chain = tuple(one.id for one in await layers.list_layers(self.id))
        size = (await self.volumes.ensure(self.id, size_bytes=0, base=self.base)).size_bytes
        await layers.keep(
            KeptSnapshot(f"{self.id}-s{number}", f"{self.id}-uid-{number}", {"root": KeptDisk(chain, size)})
        )

    async def absorb(self, driver: QemuDriver) -> None:
        """What the agent does by itself now and then; ``driver`` is its runtime."""
        state = AllocationState(
            self.envelope, Checkpoint(run="up", made=True), CheckpointStore(self.lab.host.state_dir)
        )
        state.guest = await driver.inspect(self.id)
        self.table.states[self.envelope.uid] = state
        disk = SimpleNamespace(disk=self.base, disk_format=self.lab.manifest.disk_format)
        images: Any = SimpleNamespace(find=lambda sha256: disk)
        await self.kept.refresh()
        runtimes = Runtimes({"vm": driver})
        volumes = Volumes(self.pools, self.table, self.reporter, self.clock, Tasks())
        parts = (self.pools, volumes, self.table, runtimes, images, self.kept, DiskTurns(), self.reporter, self.clock)
        work = Absorption(*parts)
        await work.absorb_all()
        await self.kept.refresh()

    def open_files(self) -> set[str]:
        (pid,) = self.lab.processes(f"/{self.id}/")
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}

    async def kill(self, driver: QemuDriver) -> None:
        """The machine dies; returns once its driver has noticed."""
        for pid in self.lab.processes(f"/{self.id}/"):
            os.kill(pid, signal.SIGKILL)
        await until(driver, self.id, lambda facts: facts.state != "running")


def make_uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


async def write(driver: QemuDriver, guest: str, number: int) -> None:
    fill = f"dd if=/dev/urandom of=/root/data-{number} bs=64k count=16 2>/dev/null; sync"
    assert (await run(driver, guest, "sh", "-c", fill))[2] == 0


async def read(driver: QemuDriver, guest: str) -> str:
    out, err, code = await run(driver, guest, "sh", "-c", READ)
    assert code == 0, err
    return out.decode()


@pytest.mark.parametrize("running", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_the_layer_of_the_middle_snapshot_goes_and_every_content_stays(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    monkeypatch.setattr(absorption, "LEAST_PAUSE_SECONDS", 0.0)
    node, driver = SnapshotLab(lab, f"middle-{running}"), lab.driver()
    try:
        seen = []
        for number in (1, 2, 3):
            await ready(driver, await node.plan())
            await write(driver, node.id, number)
            seen.append(await read(driver, node.id))
            if not running:
                await driver.stop(node.id, grace_seconds=0)
            await node.take(driver, number, running=running)
        await ready(driver, await node.plan())
        await write(driver, node.id, 4)
        whole = await read(driver, node.id)
        assert [len(one.splitlines()) for one in (*seen, whole)] == [1, 2, 3, 4]
        middle = next(one for one in await node.volumes.layers.list_layers(node.id) if one.id == f"{node.id}-2")
        await node.volumes.layers.drop(f"{node.id}-s2")
        if not running:
            await driver.stop(node.id, grace_seconds=0)
        await node.absorb(driver)
        assert [one.id for one in await node.volumes.layers.list_layers(node.id)] == [f"{node.id}-1", f"{node.id}-3"]
        mine = [one.uid for one in node.kept.snapshots if one.uid.startswith(node.id)]
        assert mine == [f"{node.id}-uid-1", f"{node.id}-uid-3"]
        if running:
            assert not Path(middle.path).exists() and middle.path not in node.open_files()
            (disk,) = (await driver._guests.get(node.id)).record.plan.disks  # what migrations and suspensions look at
            assert find_own_file(disk) == (await node.plan()).disks[0].path and find_own_file(disk) in node.open_files()
            assert await read(driver, node.id) == whole
            await node.kill(driver)
        await ready(driver, await node.plan())
        assert await read(driver, node.id) == whole
        await driver.stop(node.id, grace_seconds=0)
        third = f"{node.id}-third"
        await node.volumes.layers.clone(third, f"{node.id}-s3", "root")
        await ready(driver, await node.plan(third))
        assert await read(driver, third) == seen[2]
        await driver.stop(third, grace_seconds=0)
        await driver.remove(third)
    finally:
        await lab.close_drivers()


async def test_a_machine_that_is_killed_right_after_a_copy_has_lost_nothing_of_it(
    lab: GuestLab,
) -> None:
    node, driver = SnapshotLab(lab, "killed"), lab.driver()
    try:
        await ready(driver, await node.plan())
        await write(driver, node.id, 1)
        whole = await read(driver, node.id)
        await node.take(driver, 1)
        await node.volumes.layers.drop(f"{node.id}-s1")
        assert (await run(driver, node.id, "mount", "-o", "remount,ro", "/"))[1:] == (b"", 0)
        await node.absorb(driver)
        await node.kill(driver)  # the guest has not written since, so that nothing has made it flush its disk
        assert await node.volumes.layers.list_layers(node.id) == []
        await ready(driver, await node.plan())
        assert await read(driver, node.id) == whole
        await driver.stop(node.id, grace_seconds=0)
    finally:
        await lab.close_drivers()


class Killed(Exception): ...


async def test_a_copy_that_is_cut_off_anywhere_is_repeated_and_the_guest_runs_on(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, driver = SnapshotLab(lab, "cut"), lab.driver()
    layers = node.volumes.layers

    async def die(*given: object) -> None:
        raise Killed

    async def begin_anew() -> QemuDriver:
        await driver.close()
        other = lab.driver()
        await other.recover()
        return other

    try:
        await ready(driver, await node.plan())
        for number in (1, 2):
            await write(driver, node.id, number)
            await node.take(driver, number)
        whole = await read(driver, node.id)
        await layers.drop(f"{node.id}-s1")
        lower = (await layers.list_layers(node.id))[0].path
        with monkeypatch.context() as slow:
            slow.setattr(absorb, "BYTES_PER_SECOND", 512 << 10)
            working = asyncio.ensure_future(node.absorb(driver))
            while not await list_jobs(driver, node.id):
                await asyncio.sleep(0.01)
            working.cancel()  # the guest is about to migrate
            await asyncio.gather(working, return_exceptions=True)
            assert not await list_jobs(driver, node.id)
            slow.setattr(snapshots, "follow_absorbing", die)
            with pytest.raises(Killed):  # the agent, during the copy
                await node.absorb(driver)
            assert await list_jobs(driver, node.id)
            driver = await begin_anew()
            assert not await list_jobs(driver, node.id)
        with monkeypatch.context() as patch:
            patch.setattr(layers, "forget_layer", die)
            with pytest.raises(Killed):  # and another one, before the pool's record
                await node.absorb(driver)
        assert not await list_jobs(driver, node.id)
        assert [one.path for one in await layers.list_layers(node.id)][:1] == [lower] and lower not in node.open_files()
        driver = await begin_anew()
        await node.absorb(driver)
        assert [one.id for one in await layers.list_layers(node.id)] == [f"{node.id}-2"]
        assert await read(driver, node.id) == whole
        await node.take(driver, 3)  # the next snapshot meets nothing that was left open
        await driver.stop(node.id, grace_seconds=0)
    finally:
        await lab.close_drivers()


async def test_a_snapshot_is_taken_although_a_copy_was_left_that_nobody_follows(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, driver = SnapshotLab(lab, "left"), lab.driver()

    async def die(*given: object) -> None:
        raise Killed

    try:
        await ready(driver, await node.plan())
        await write(driver, node.id, 1)
        whole = await read(driver, node.id)
        await node.take(driver, 1)
        await node.volumes.layers.drop(f"{node.id}-s1")
        with monkeypatch.context() as slow:
            slow.setattr(absorb, "BYTES_PER_SECOND", 64 << 10)
            slow.setattr(snapshots, "follow_absorbing", die)
            with pytest.raises(Killed):
                await node.absorb(driver)
        assert await list_jobs(driver, node.id)
        await node.take(driver, 2)
        assert not await list_jobs(driver, node.id)
        await node.absorb(driver)
        assert [one.id for one in await node.volumes.layers.list_layers(node.id)] == [f"{node.id}-2"]
        assert await read(driver, node.id) == whole
        await driver.stop(node.id, grace_seconds=0)
    finally:
        await lab.close_drivers()


@pytest.mark.long
async def test_a_copy_that_somebody_ended_and_dismissed_does_not_count_as_done(
    lab: GuestLab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, driver = SnapshotLab(lab, "dismissed"), lab.driver()
    try:
        await ready(driver, await node.plan())
        await write(driver, node.id, 1)
        whole = await read(driver, node.id)
        await node.take(driver, 1)
        await node.volumes.layers.drop(f"{node.id}-s1")
        with monkeypatch.context() as slow:
            slow.setattr(absorb, "BYTES_PER_SECOND", 64 << 10)
            working = asyncio.ensure_future(node.absorb(driver))
            while not await list_jobs(driver, node.id):
                await asyncio.sleep(0.01)
            await absorb.end_left(await driver._guests.get(node.id))
            await working
        assert "was not absorbed to the end" in caplog.text
        assert [one.id for one in await node.volumes.layers.list_layers(node.id)] == [f"{node.id}-1"]
        assert await read(driver, node.id) == whole
        await node.absorb(driver)
        assert await node.volumes.layers.list_layers(node.id) == []
        await node.kill(driver)
        await ready(driver, await node.plan())
        assert await read(driver, node.id) == whole
        await driver.stop(node.id, grace_seconds=0)
    finally:
        await lab.close_drivers()


@pytest.mark.long
async def test_a_suspended_guest_goes_on_from_its_memory_on_a_shorter_chain(lab: GuestLab) -> None:
    node, driver = SnapshotLab(lab, "asleep"), lab.driver()
    try:
        await ready(driver, await node.plan())
        await write(driver, node.id, 1)
        await node.take(driver, 1)
        await write(driver, node.id, 2)
        whole = await read(driver, node.id)
        boot = (await driver.inspect(node.id)).boot_id
        await node.volumes.layers.drop(f"{node.id}-s1")
        await driver.suspend(node.id)
        await node.absorb(driver)
        assert await node.volumes.layers.list_layers(node.id) == []
        await ready(driver, await node.plan())
        assert (await driver.inspect(node.id)).boot_id == boot and await read(driver, node.id) == whole
        await driver.stop(node.id, grace_seconds=0)
    finally:
        await lab.close_drivers()


async def list_jobs(driver: QemuDriver, guest_id: str) -> list[str]:
    guest = await driver._guests.get(guest_id)
    return [job["id"] for job in await guest.monitor().execute("query-jobs")]
