"""Snapshots of volumes and of containers' volumes as controllers see to them: ordered of the node that has the data, kept there,
gone back to, and made into other volumes. Nothing uses a volume meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.controllers.test_snapshots import snapshot, take, until
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode

from weft.kinds.node import NodeRuntime, NodeSnapshot
from weft.kinds.orders import OrderReports
from weft.kinds.parts.snapshot.restored import VolumeOrigin, VolumeRestore
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule
from weft.kinds.parts.snapshot.volume_work import VolumeOrder, VolumeReport
from weft.kinds.snapshot import SnapshotStatus
from weft.kinds.volume import VolumeSpec, VolumeStatus
from weft.objects.envelope import Envelope, decode_part, merge_part

SIZE = 64 << 20
RUNS = NodeRuntime(name="crun", version="1.8", kinds=["container"], isolations=["container"])


class VolumeNode(SnapshotNode):
    """A node that does the work on volumes that objects order of it, unless it ``rests`` or ``refuses``."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rests, self.refuses = False, ""
        self.done: list[VolumeOrder] = []

    async def start(self) -> None:
        await super().start()
        self._tasks.append(asyncio.ensure_future(self._serve()))

    async def _serve(self) -> None:
        while True:
            await self.lab.clock.sleep(0.2)
            if not self.rests:
                await self.serve()

    async def serve(self) -> None:
        found = [decode_part(one.status, SnapshotStatus).volume_order for one in await self.lab.every("snapshot")]
        found += [decode_part(one.status, VolumeStatus).order for one in await self.lab.every("volume")]
        orders = [order for order in found if order is not None and order.node_uid == self.uid]
        reports = [self._do(order) for order in orders]
        kept = {one.uid: one for one in self.report.snapshots}
        volumes = set(self.report.volumes)
        for order in orders:
            if order.act == "take" and not self.refuses:
                kept.setdefault(order.snapshot, NodeSnapshot(uid=order.snapshot, size=5 << 20, pool_id="p"))
            elif order.act == "make":
                volumes.add(order.uid)
        known = {one.uid for one in await self.lab.every("snapshot") if one.deleting_since is None} | {
            order.snapshot for order in orders
        }
        changes = {
            "orders": OrderReports(volume=reports),
            "snapshots": [one for one in kept.values() if one.uid in known],
            "volumes": sorted(volumes),
        }
        if any(getattr(self.report, name) != value for name, value in changes.items()):
            await self.write_report(**changes)

    def _do(self, order: VolumeOrder) -> VolumeReport:
        if order not in self.done:
            self.done.append(order)
        report = VolumeReport(uid=order.uid, act=order.act, generation=order.generation)
        if self.refuses:
            return msgspec.structs.replace(report, phase="failed", reason="noSpace", message=self.refuses)
        disks = {volume.uid: SIZE for volume in order.volumes}
        return msgspec.structs.replace(
            report, phase="done", disks=disks, size=4 << 20, taken_at=self.lab.clock.now(), pool="local", pool_id="p"
        )

    def list_done(self) -> list[str]:
        return [order.act for order in self.done]


async def join(lab: MovingLab, name: str = "n1") -> VolumeNode:
    node = VolumeNode(lab, name, epoch=await lab.epoch(), runtimes=[RUNS])
    lab.nodes[name] = node
    await node.join()
    return node


async def put_volume(lab: MovingLab, node: VolumeNode, name: str = "data", **spec: Any) -> Envelope:
    """One with data on the node."""
    status = VolumeStatus(node=node.name, node_uid=node.uid, pool="local", size=SIZE)
    made = await lab.put("volume", name, VolumeSpec(size=SIZE, **spec), status=status, finalizers=("volume",))
    await node.write_report(volumes=[*node.report.volumes, made.uid])
    return made


async def volume(lab: MovingLab, name: str = "data") -> VolumeStatus:
    envelope = await lab.get(f"/volume/default/{name}")
    assert envelope is not None
    return decode_part(envelope.status, VolumeStatus)


async def go_back(lab: MovingLab, source: str, generation: int = 2, name: str = "data", **more: Any) -> None:
    def change(envelope: Envelope) -> None:
        asked = VolumeRestore(snapshot=source, generation=generation, **more)
        envelope.actions = merge_part(envelope.actions, {"restore": asked})
        envelope.generation = generation

    await lab.change(f"/volume/default/{name}", change)


async def until_back(lab: MovingLab, generation: int = 2, name: str = "data") -> VolumeStatus:
    async def there() -> bool:
        return (await volume(lab, name)).restored == generation

    await lab.until(there, 60.0)
    return await volume(lab, name)


async def test_a_volume_that_nothing_uses_is_taken_by_its_node_and_the_next_one_stands_on_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        data = await put_volume(lab, node)
        for name in ("a", "b", "c"):
            await take(lab, name, "volume/data")
            await until(lab, name, "Ready")
            await lab.pass_time(1.0)
        status = await snapshot(lab, "c")
        assert (status.node, status.workload_uid, status.volume_order) == ("n1", data.uid, None)
        assert status.disks["data"].key == data.uid and status.disks["data"].size == SIZE
        assert [(await snapshot(lab, name)).parent for name in ("a", "b", "c")] == ["", "a", "b"]
        assert [order.volumes[0].name for order in node.done] == ["data"] * 3
        await lab.delete("/snapshot/default/b")
        await lab.until_gone("/snapshot/default/b")
        assert (await snapshot(lab, "c")).parent == "a"


async def test_a_growth_that_has_not_happened_is_in_no_snapshot_and_comes_with_no_restore(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)

        def grow(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, {"size": 900 << 40})

        await lab.change("/volume/default/data", grow)
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        status = await snapshot(lab, "a")
        assert (status.disks["data"].size, status.workload_spec["size"]) == (SIZE, SIZE)
        await go_back(lab, "a", keep=False)
        await until_back(lab)
        assert [(order.act, order.size) for order in node.done] == [("take", 0), ("replace", SIZE)]


async def test_what_can_not_be_taken_says_why_and_what_to_do(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await lab.put("volume", "fresh", VolumeSpec(size=SIZE), finalizers=("volume",))
        await put_volume(lab, node, "disk")
        await put_volume(lab, node)
        await lab.put_vm("web", volumes=["disk"])
        await lab.until_phase("web", "Running")
        for name, of in (("a", "volume/gone"), ("b", "volume/fresh"), ("c", "volume/disk")):
            await take(lab, name, of)
        told = [await until(lab, name, "Failed") for name in ("a", "b", "c")]
        assert [one.reason for one in told] == ["sourceGone", "noData", "inUse"]
        assert "weft vm snapshot web" in told[2].message
        node.refuses = "the pool is full"
        await take(lab, "d", "volume/data")
        assert (await until(lab, "d", "Failed")).message == "the pool is full"
        node.refuses, node.rests = "", True
        await take(lab, "e", "volume/data")
        await until(lab, "e", "Taking")
        await lab.delete("/snapshot/default/e")
        await lab.pass_time(2.0)
        assert "as soon as its node" in (await snapshot(lab, "e")).message
        node.rests = False
        await lab.until_gone("/snapshot/default/e")
        await lab.pass_time(2.0)
        assert node.report.snapshots == []


async def test_all_volumes_of_a_container_are_taken_with_one_order(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        made = [await put_volume(lab, node, name) for name in ("logs", "db")]
        box = await lab.put_container("box", mounts=["logs:/a", "db:/b"])
        await lab.until_phase("box", "Running", kind="container")
        await take(lab, "a", "container/box")
        status = await until(lab, "a", "Ready")
        assert {name: disk.key for name, disk in status.disks.items()} == {
            "logs": made[0].uid,
            "db": made[1].uid,
        }
        assert status.workload_uid == box.uid and status.workload_spec == {"mounts": ["logs:/a", "db:/b"]}
        assert [len(order.volumes) for order in node.done] == [2]
        await take(lab, "b", "volume/db")  # a container's volume by itself
        await until(lab, "b", "Ready")
        bare = await lab.put_container("bare")
        assert bare.name == "bare"
        await lab.until_phase("bare", "Running", kind="container")
        await take(lab, "c", "container/bare")
        assert (await until(lab, "c", "Failed")).reason == "noVolumes"


async def test_a_volume_goes_back_once_what_stands_there_is_kept_and_nothing_gets_it_meanwhile(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await lab.put("quota", "project", {"disk": 1 << 40})
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        node.rests = True
        await go_back(lab, "a")
        await lab.pass_time(1.0)
        await lab.put_vm("web", volumes=["data"])
        await lab.until_refused("web", "volumeNotReady")
        assert (await volume(lab)).phase == "Restoring"
        [before] = [one for one in await lab.every("snapshot") if one.name != "a"]
        assert before.name.startswith("data-before-") and node.list_done() == ["take"]
        node.rests = False
        status = await until_back(lab)
        assert (status.reason, status.message, status.order) == ("", "", None)
        assert node.list_done() == ["take", "take", "replace"]
        assert (await snapshot(lab, before.name)).phase == "Ready"
        await lab.until_phase("web", "Running")
        await lab.delete("/vm/default/web")
        await lab.until_gone("/vm/default/web")
        await take(lab, "b", "volume/data")
        assert (await until(lab, "b", "Ready")).parent == "a"  # not what was kept
        await go_back(lab, "a", 3, keep=False)
        await until_back(lab, 3)
        assert node.list_done() == ["take", "take", "replace", "take", "replace"]


@pytest.mark.parametrize(
    ("what", "reason"), [("gone", "snapshotGone"), ("full", "keepFailed"), ("else", "disksDiffer")]
)
async def test_a_restore_that_can_not_be_leaves_the_data_as_it_is_and_may_be_followed_by_another(
    tmp_path: Path, what: str, reason: str
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await put_volume(lab, node, "other")
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        await take(lab, "b", "volume/other")
        await until(lab, "b", "Ready")
        node.refuses = "the pool is full" if what == "full" else ""
        await go_back(lab, {"gone": "nope", "full": "a", "else": "b"}[what])
        told = await until_back(lab)
        assert told.reason == reason and "stays as it is" in told.message and told.phase == "Available"
        assert "replace" not in node.list_done()
        node.refuses = ""
        await go_back(lab, "a", 3, keep=False)
        assert (await until_back(lab, 3)).reason == ""


async def test_a_volume_from_a_snapshot_is_made_where_that_lies_and_then_used_there(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        node.rests = True
        origin = VolumeOrigin(snapshot="a", disk="data", alone=True)
        made = await lab.put("volume", "copy", VolumeSpec(size=SIZE), marks={"origin": origin}, finalizers=("volume",))
        await lab.put_vm("web", volumes=["copy"])
        await join(lab, "n2")
        await lab.until_refused("web", "volumeNotReady")
        assert (await volume(lab, "copy")).phase == "Restoring"
        node.rests = False
        await lab.until_phase("web", "Running")
        status = await volume(lab, "copy")
        assert (status.node, status.pool, status.size, status.order) == ("n1", "local", SIZE, None)
        order = node.done[-1]
        assert (order.act, order.uid, order.disk) == ("make", made.uid, (await snapshot(lab, "a")).disks["data"].key)
        assert (await lab.status("web")).node == "n1"
        await lab.delete("/snapshot/default/a")  # the volume needs it no more
        await lab.until_gone("/snapshot/default/a")


async def test_a_volume_from_a_snapshot_that_is_gone_says_so_and_one_that_is_deleted_meanwhile_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        gone = VolumeOrigin(snapshot="nope", disk="data", alone=True)
        await lab.put("volume", "none", VolumeSpec(size=SIZE), marks={"origin": gone}, finalizers=("volume",))
        await lab.pass_time(1.0)
        assert (await volume(lab, "none")).reason == "snapshotGone"
        node.rests = True
        origin = VolumeOrigin(snapshot="a", disk="data", alone=True)
        made = await lab.put("volume", "copy", VolumeSpec(size=SIZE), marks={"origin": origin}, finalizers=("volume",))
        await lab.pass_time(1.0)
        await lab.delete("/volume/default/copy")
        await lab.pass_time(2.0)
        assert await lab.get("/volume/default/copy") is not None  # its node may be about to make it
        node.rests = False

        async def made_there() -> bool:
            return made.uid in node.report.volumes

        await lab.until(made_there)
        await lab.pass_time(1.0)
        assert (await volume(lab, "copy")).node_uid == node.uid  # so its node is asked to remove it
        node.rests = True
        await node.write_report(volumes=[uid for uid in node.report.volumes if uid != made.uid])
        await lab.until_gone("/volume/default/copy")


async def test_a_schedule_takes_snapshots_of_a_volume_and_keeps_the_newest_but_none_of_a_vms(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node, snapshots=SnapshotSchedule(every=600.0, keep=2))
        await take(lab, "mine", "volume/data")
        for _ in range(4):
            await lab.pass_time(650.0)
        names = [one.name for one in await lab.every("snapshot") if one.deleting_since is None]
        assert "mine" in names and len(names) in (3, 4) and len(node.done) > 4
        await lab.put_vm("web", volumes=["data"])
        await lab.until_phase("web", "Running")
        await lab.pass_time(5.0)
        done = len(node.done)
        await lab.pass_time(1300.0)
        assert len(node.done) == done  # the VM has it


async def test_a_restore_whose_quota_has_no_room_for_what_stands_there_leaves_all_as_it_is(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await put_volume(lab, node)
        await take(lab, "a", "volume/data")
        await until(lab, "a", "Ready")
        await lab.put("quota", "project", {"disk": SIZE})
        await lab.pass_time(2.0)
        await go_back(lab, "a")
        told = await until_back(lab)
        assert told.reason == "quotaExceeded" and "--yes" in told.message and node.list_done() == ["take"]
