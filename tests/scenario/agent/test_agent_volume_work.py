"""What an agent does with volumes on the server's orders: snapshots of them, volumes from snapshots, and volumes that go back. No
death of the agent leaves half of it, and an order that comes again late changes nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import NODE_UID, Lab, make_allocation
from tests.scenario.cut import MOST_CUTS, cut

from weft.agent.snapshot import work as volume_work
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.kinds.allocation import AllocatedVolume
from weft.kinds.orders import find_report
from weft.kinds.parts.snapshot.volume_work import (
    OrderedVolume,
    VolumeAct,
    VolumeOrder,
    VolumeReport,
)

VOLUME = "6f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"
OTHER = "7f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a22"
COPY = "8f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a33"
SIZE = 16 << 20


def order(act: VolumeAct, uid: str, *volumes: str, snapshot: str = "snap-1", **more: Any) -> VolumeOrder:
    ordered = [OrderedVolume(uid=one, name=f"v{one[0]}", pool="local") for one in volumes]
    return VolumeOrder(
        uid=uid, act=act, node_uid=NODE_UID, snapshot=snapshot, snapshot_name=snapshot, volumes=ordered, **more
    )


TAKE = order("take", "snap-1", VOLUME, OTHER)
MAKE = order("make", COPY, COPY, disk=VOLUME, size=SIZE)
BACK = order("replace", VOLUME, VOLUME, disk=VOLUME, size=SIZE, generation=3)


def find(lab: Lab, of: VolumeOrder) -> VolumeReport | None:
    return find_report(lab.server.node_report.orders.volume, of) if lab.server.node_report is not None else None


def is_over(lab: Lab, of: VolumeOrder) -> bool:
    found = find(lab, of)
    return found is not None and found.is_over


async def until_over(lab: Lab, of: VolumeOrder) -> VolumeReport:
    await lab.until(lambda: is_over(lab, of), f"the end of {of.act}")
    found = find(lab, of)
    assert found is not None
    return found


def kept(lab: Lab) -> list[str]:
    assert lab.server.node_report is not None
    return [one.uid for one in lab.server.node_report.snapshots]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_work, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(volume_work, "FAILED_SECONDS", 0.1)
    monkeypatch.setattr("weft.agent.agent.SHORT_SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("weft.agent.agent.HEARTBEAT_SECONDS", 0.1)


class PoolLab(Lab):
    """A node whose pool is a folder."""

    def make_drivers(self) -> None:
        super().make_drivers()
        self.pool = DirectoryVolumes(self.host)
        self.volumes = self.pool  # type: ignore[assignment]

    async def put_file(self, volume: str, text: str) -> None:
        """Write ``text`` into a volume as a container would have left it."""
        facts = await self.pool.ensure_files(volume, size_bytes=SIZE)
        source = Path(self.host.state_dir) / "text"
        source.write_text(text)
        for request in ("rm /note", f"write {source} /note"):
            subprocess.run(["debugfs", "-w", "-R", request, facts.path], check=True, capture_output=True)

    async def read_file(self, volume: str) -> str:
        facts = await self.pool.ensure_files(volume, size_bytes=SIZE)
        done = subprocess.run(["debugfs", "-R", "cat /note", facts.path], check=True, capture_output=True, text=True)
        return done.stdout


async def test_volumes_of_containers_are_kept_copied_and_taken_back_with_their_files(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    for volume in (VOLUME, OTHER):
        await lab.put_file(volume, f"then {volume[0]}")
    async with lab.agent():
        lab.server.volume_work = [TAKE]
        taken = await until_over(lab, TAKE)
        assert (taken.phase, taken.consistency) == ("done", "stopped"), taken
        assert taken.disks == {VOLUME: SIZE, OTHER: SIZE} and taken.size > 0 and taken.taken_at > 0
        assert kept(lab) == ["snap-1"]
        await lab.put_file(VOLUME, "later")
        lab.server.volume_work = [MAKE, BACK]
        assert [(await until_over(lab, one)).phase for one in (MAKE, BACK)] == ["done", "done"]
        assert lab.server.node_report is not None and COPY in lab.server.node_report.volumes
    assert [await lab.read_file(one) for one in (VOLUME, OTHER, COPY)] == ["then 6", "then 7", "then 6"]


async def test_an_order_that_comes_again_late_changes_nothing(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    await lab.put_file(VOLUME, "then")
    take = order("take", "snap-1", VOLUME)
    async with lab.agent():
        for one in (take, BACK):
            lab.server.volume_work = [one]
            await until_over(lab, one)
        lab.server.volume_work = []
        await lab.until(lambda: find(lab, BACK) is None)
    await lab.put_file(VOLUME, "written since")
    async with lab.agent():
        lab.server.volume_work = [BACK]
        assert (await until_over(lab, BACK)).phase == "done"
    assert await lab.read_file(VOLUME) == "written since"


async def test_a_snapshot_that_can_not_be_taken_of_one_volume_is_kept_of_none(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    await lab.put_file(VOLUME, "then")
    async with lab.agent():
        lab.server.volume_work = [TAKE]
        taken = await until_over(lab, TAKE)
        assert taken.phase == "failed" and "v7" in taken.message and OTHER not in taken.message, taken
        assert kept(lab) == []


async def test_a_volume_goes_back_to_no_snapshot_that_is_not_there_and_says_so(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    await lab.put_file(VOLUME, "now")
    async with lab.agent():
        lab.server.volume_work = [BACK]
        report = await until_over(lab, BACK)
        assert (report.phase, report.reason) == ("failed", "snapshotGone")
    assert await lab.read_file(VOLUME) == "now"


async def test_the_volume_of_a_workload_waits_and_a_vms_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    async with lab.agent():
        vm = make_allocation(volumes=[AllocatedVolume(name="v6", uid=VOLUME, size=SIZE)])
        lab.server.put(vm)
        await lab.until_state(vm, "running")
        take = order("take", "snap-1", VOLUME)
        lab.server.volume_work = [take, BACK]
        refused = await until_over(lab, take)
        assert (refused.phase, refused.reason) == ("failed", "inUse") and "weft vm snapshot web" in refused.message
        await lab.until(lambda: (found := find(lab, BACK)) is not None and "waits" in found.message)
        waiting = find(lab, BACK)
        assert waiting is not None and waiting.phase == "working"


@pytest.mark.parametrize("act", ["take", "make", "replace"])
async def test_no_death_of_the_agent_leaves_half_of_it(tmp_path: Path, act: VolumeAct) -> None:
    wanted = {"take": TAKE, "make": MAKE, "replace": BACK}[act]
    for at in range(1, MOST_CUTS):
        folder = tmp_path / str(at)
        folder.mkdir()
        lab = Lab(folder)
        async with lab.agent():
            for volume in (VOLUME, OTHER):
                await lab.volumes.ensure(volume, size_bytes=SIZE)
            if act != "take":
                lab.server.volume_work = [TAKE]
                await until_over(lab, TAKE)
        with cut(at) as death:
            async with lab.agent():
                lab.server.volume_work = [wanted]
                await lab.until(lambda death=death, lab=lab: death.reached or is_over(lab, wanted))
        reached = death.reached
        async with lab.agent():
            report = await until_over(lab, wanted)
            assert report.phase == "done", (at, death.where, report)
            assert kept(lab) == ["snap-1"], (at, death.where)
            ids = {facts.id for facts in await lab.volumes.list()}
            assert ids == {VOLUME, OTHER} | ({COPY} if act == "make" else set()), (at, death.where)
            assert not any([await lab.volumes.layers.find_unfinished(one) for one in (VOLUME, OTHER)])
        if not reached:
            return
    raise AssertionError("it never ends")


async def test_what_is_being_worked_on_is_not_removed_meanwhile(tmp_path: Path) -> None:
    lab = PoolLab(tmp_path)
    await lab.put_file(VOLUME, "then")
    take = order("take", "snap-1", VOLUME)
    async with lab.agent() as agent:
        lab.server.volume_work, lab.server.remove_snapshots = [take], ["snap-1"]
        await until_over(lab, take)
        await lab.until(lambda: kept(lab) == [])
        lab.server.remove_snapshots = []
        await lab.settle()
        assert kept(lab) == [] and find(lab, take) is not None  # nor is it taken again
        assert agent.make_node_report().orders.volume[0].is_over


def test_orders_and_reports_go_together_by_what_they_ask_for() -> None:
    report = VolumeReport(uid=VOLUME, act="replace", generation=3)
    assert find_report([report], BACK) is report
    assert find_report([report], msgspec.structs.replace(BACK, generation=4)) is None
