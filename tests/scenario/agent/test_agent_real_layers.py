"""An agent's snapshots and restores on a real pool of files: what each disk holds afterwards, read through its whole chain."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.agent.test_agent_restores import BACK, OTHER_VOLUME, TWIN, until_restored
from tests.scenario.agent.test_agent_taking import S1, S2, VOLUME, make_vm, until_over
from tests.scenario.agent_lab import Lab, change, make_allocation

from weft.agent.allocation.steps import snapshot as step
from weft.agent.snapshot import absorption
from weft.contracts.driver.runtime import GuestDisk
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import ROOT, AllocatedVolume
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin
from weft.objects.envelope import Envelope


class PoolLab(Lab):
    """A node whose pool is a folder."""

    def make_drivers(self) -> None:
        super().make_drivers()
        self.volumes = DirectoryVolumes(self.host)  # type: ignore[assignment]


def chain(disk: GuestDisk) -> str:
    """A disk as QEMU would open it: every file of its chain is named, none taken from a header."""
    node = ""
    for path, form in ((disk.base, disk.base_format), *((one.path, one.format) for one in disk.layers)):
        if path is not None:
            node = _open(path, form, node)
    return "json:" + _open(disk.path, disk.format, node)


def _open(path: str, form: str, below: str) -> str:
    backing = f', "backing": {below or "null"}' if form == "qcow2" else ""
    return f'{{"driver": "{form}", "file": {{"driver": "file", "filename": "{path}"}}{backing}}}'


def write(disk: GuestDisk, pattern: int) -> None:
    subprocess.run(["qemu-io", "-c", f"write -P {pattern} 0 4k", chain(disk)], check=True, capture_output=True)


def holds(disk: GuestDisk, pattern: int) -> bool:
    done = subprocess.run(["qemu-io", "-c", f"read -P {pattern} 0 4k", chain(disk)], capture_output=True, text=True)
    return done.returncode == 0 and "Pattern verification failed" not in done.stdout


def change_origin(origin: AllocatedOrigin, **fields: Any) -> AllocatedOrigin:
    """It without memory."""
    return msgspec.structs.replace(origin, memory=False, **fields)


def disks(lab: Lab, vm: Envelope) -> list[GuestDisk]:
    guest = lab.guest(vm)
    assert guest is not None
    return [disk for disk in guest.plan.disks if not disk.read_only]


async def restart(lab: Lab, vm: Envelope, count: int) -> Envelope:
    """A VM that was stopped and started, so that its plan has its disks as they are."""
    for desired, state in (("stop", "stopped"), ("run", "running")):
        count += 1
        vm = change(vm, desired=desired, desired_count=count)
        lab.server.put(vm)
        await lab.until(
            lambda vm=vm, state=state, count=count: (
                (report := lab.server.reports.get(vm.name)) is not None
                and (report.state, report.desired_count) == (state, count)
            )
        )
    return vm


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ASK_SECONDS", 0.02)


async def test_each_disk_holds_what_it_held_then(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    async with lab.agent():
        vm = make_vm()
        lab.server.put(vm)
        await lab.until_state(vm, "running")
        for disk in disks(lab, vm):
            write(disk, 1)
        lab.server.put(change(vm, snapshots=[S1]))
        report = await until_over(lab, vm)
        assert report.phase == "ready" and set(report.disks) == {ROOT, VOLUME}, report
        vm = await restart(lab, vm, 0)
        for disk in disks(lab, vm):
            assert len(disk.layers) == 1 and holds(disk, 1)
            write(disk, 2)
        vm = change(vm, origin=change_origin(BACK))
        lab.server.put(vm)
        await until_restored(lab, vm)
        await lab.until_state(vm, "running")
        assert all(holds(disk, 1) for disk in disks(lab, vm))
        assert (await until_over(lab, vm, "snap-before")).phase == "ready"
        volumes = [AllocatedVolume(name="data", uid=OTHER_VOLUME, size=1 << 20)]
        twin = make_allocation("twin", volumes=volumes, origin=change_origin(TWIN))
        lab.server.put(twin)
        await lab.until_state(twin, "running")
        assert all(holds(disk, 1) for disk in disks(lab, twin))
        later = change_origin(BACK, snapshot="snap-before", name="before", generation=8, keeps=None)
        vm = change(vm, origin=later)
        lab.server.put(vm)
        await until_restored(lab, vm, 8)
        await lab.until_state(vm, "running")
        assert all(holds(disk, 2) for disk in disks(lab, vm)), "what stood there before the first restore"
        assert all(holds(disk, 1) for disk in disks(lab, twin)), "the twin keeps its own"


async def test_the_layers_of_a_volume_without_a_vm_go_after_their_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absorption, "LEAST_PAUSE_SECONDS", 0.0)
    lab = PoolLab(tmp_path)
    async with lab.agent():
        vm = make_vm()
        lab.server.put(vm)
        await lab.until_state(vm, "running")
        write(disks(lab, vm)[1], 1)
        for snapshots in ([S1], [S1, S2]):
            lab.server.put(change(vm, snapshots=snapshots))
            await until_over(lab, vm, snapshots[-1].uid)
        vm = await restart(lab, vm, 0)
        data = disks(lab, vm)[1]
        assert len(data.layers) == 2 and holds(data, 1)
        write(data, 2)
        vm = msgspec.structs.replace(vm, deleting_since=1.0)
        lab.server.put(vm)
        await lab.until_state(vm, "released")
        lab.server.delete(vm)
        pool: Any = lab.volumes
        lab.server.remove_snapshots = ["snap-1", "snap-2"]
        lab.server.put(make_allocation("other"))  # something to report
        await lab.until(lambda: not list(pool._folder.glob("layers/*.qcow2")), "the layers' end")
        left = await pool.inspect(VOLUME)
        assert await pool.layers.list_layers(VOLUME) == []
        assert holds(GuestDisk(left.path, "qcow2", "data"), 2)
