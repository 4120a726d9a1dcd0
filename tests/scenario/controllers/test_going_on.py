"""VMs of a lost node that go on from a snapshot elsewhere, with pretended nodes and time moved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers.test_node_loss import RUNS, SAN, make_nodes, open_nodes
from tests.scenario.controllers_lab import GIB, Lab

from weft.contracts.store import Delete, Put
from weft.kinds.allocation import AllocationSpec
from weft.kinds.backup import BackupStatus
from weft.kinds.backup_repository import BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupOrder, BackupReport
from weft.kinds.node import NodePool, NodeSnapshot
from weft.kinds.orders import OrderReports
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.kinds.parts.workload import WorkloadMarks, WorkloadPoint
from weft.kinds.snapshot import SnapshotDisk, SnapshotMarks, SnapshotStatus
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Envelope, decode_part, encode_envelope, merge_part

TAKEN_AT = 1_700_000_000.0


async def put_db(lab: Lab, **spec: Any) -> tuple[Envelope, Envelope]:
    """A VM on n0 with a root disk and a volume in that node's own pool."""
    volume = await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
    vm = await lab.put_vm("db", volumes=["data"], **{"on_node_loss": "restart", **spec})
    await lab.until_phase("db", "Running")
    await lab.nodes["n0"].write_report(volumes=[volume.uid])
    return vm, volume


async def put_copy(lab: Lab, vm: Envelope, volume: Envelope, node: str, name: str = "copy") -> WorkloadPoint:
    """A snapshot of both disks on a node."""
    disks = {"root": SnapshotDisk(key="root", size=GIB, pool="local"), "data": SnapshotDisk(key=volume.uid, size=GIB)}
    at = lab.nodes[node]
    status = SnapshotStatus(
        phase="Ready", disks=disks, taken_at=TAKEN_AT, node=node, node_uid=at.uid, workload_uid=vm.uid, listed=True
    )
    made = await lab.put("snapshot", name, {"of": "vm/db"}, status=status, finalizers=("snapshot",))
    await at.write_report(snapshots=[NodeSnapshot(uid=made.uid)])
    return WorkloadPoint(snapshot=name, snapshot_uid=made.uid, taken_at=TAKEN_AT)


async def read_point(lab: Lab) -> WorkloadPoint | None:
    return decode_part((await lab.vm("db")).marks, WorkloadMarks).continues


async def lose(lab: Lab, name: str, point: WorkloadPoint | None) -> None:
    """What the commit does that frees it."""
    await lab.nodes[name].die()
    await lab.until_phase("db", "Unknown")
    envelope = await lab.vm("db")
    envelope.marks = merge_part(envelope.marks, WorkloadMarks(continues=point))
    found = [one for one in await lab.every("allocation") if decode_part(one.spec, AllocationSpec).node == name]
    for one in found:
        spec = decode_part(one.spec, AllocationSpec)
        one.spec = merge_part(one.spec, msgspec.structs.replace(spec, role="lost"))
    await lab.store.commit([Put(one.key, encode_envelope(one)) for one in (envelope, *found)])


def set_phase(snapshot: Envelope, phase: str, **more: Any) -> None:
    status = decode_part(snapshot.status, SnapshotStatus)
    snapshot.status = merge_part(snapshot.status, msgspec.structs.replace(status, phase=phase, **more))


async def come_back(lab: Lab, name: str) -> None:
    """The node is there again, with what it had."""
    node = lab.nodes[name]
    place = next(one for one in await lab.every("allocation") if decode_part(one.spec, AllocationSpec).node == name)
    copy = OrphanCopy(place.uid, decode_part(place.spec, AllocationSpec), "here", runs=False)
    orphan = f"{place.uid} vm/default/db {copy.spec.incarnation}"
    await node.write_report(orphans=[orphan], orphan_allocations=[msgspec.json.encode(copy).decode()])
    await node.start()


async def read_volume(lab: Lab) -> VolumeStatus:
    envelope = await lab.get("/volume/default/data")
    assert envelope is not None
    return decode_part(envelope.status, VolumeStatus)


async def find_place(lab: Lab, incarnation: int) -> AllocationSpec:
    return next(one for one in await lab.allocations() if one.incarnation == incarnation)


async def test_a_vm_goes_on_from_a_snapshot_where_that_is_with_its_volume_and_only_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        vm, volume = await put_db(lab)
        assert (await read_volume(lab)).node == "n0"
        point = await put_copy(lab, vm, volume, "n2")
        await open_nodes(lab, 4)
        await lab.nodes["n2"].write_report(volumes=[volume.uid])  # of an earlier time
        await lose(lab, "n0", point)
        await lab.until_refused("db", "nodeReturns")
        await lab.nodes["n2"].write_report(volumes=[])
        await lab.until_phase("db", "Running")
        place = await find_place(lab, 2)
        assert (place.node, place.role, place.instance) == ("n2", "active", "")
        assert place.origin is not None and not place.origin.identity and place.origin.snapshot == point.snapshot_uid
        assert place.origin.disks == {"root": "root", volume.uid: volume.uid}
        assert (await lab.status("db")).lost_since == TAKEN_AT
        assert (await read_volume(lab)).node == "n2"
        await lab.pass_time(5.0)
        assert await read_point(lab) is None  # the next place of it goes on with its own disks
        await lab.nodes["n2"].write_report(volumes=[volume.uid])
        await lose(lab, "n2", None)
        await lab.pass_time(30.0)
        assert len(await lab.allocations()) == 2  # its volume is there
        assert (await lab.status("db")).lost_since == TAKEN_AT


async def test_a_vm_waits_for_its_snapshot_and_has_its_own_disks_if_its_node_is_back_before(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        vm, volume = await put_db(lab)
        await open_nodes(lab, 4)
        point = await put_copy(lab, vm, volume, "n2")

        await lab.change("/snapshot/default/copy", lambda one: set_phase(one, "Failed"))
        await lose(lab, "n0", point)
        await lab.until_refused("db", "snapshotFailed")
        await lab.pass_time(30.0)
        assert (await lab.status("db")).lost_since is None and await read_point(lab) == point
        await come_back(lab, "n0")
        await lab.until_phase("db", "Running")
        await lab.pass_time(5.0)
        (place,) = await lab.allocations()
        assert (place.node, place.role, place.origin) == ("n0", "active", None)
        assert (await lab.status("db")).lost_since is None and await read_point(lab) is None


async def test_a_vm_whose_snapshot_has_no_root_disk_gets_no_disk_of_its_image(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        vm, volume = await put_db(lab)
        await open_nodes(lab, 4)
        point = await put_copy(lab, vm, volume, "n2")
        await lab.change("/snapshot/default/copy", lambda one: set_phase(one, "Ready", disks={}))
        await lose(lab, "n0", point)
        await lab.until_refused("db", "snapshotFailed")


async def put_backup(lab: Lab, vm: Envelope, name: str, taken_at: float, *keys: str, state: str = "unproven") -> None:
    disks = {"root": SnapshotDisk(key="root", size=GIB), **{key: SnapshotDisk(key=key, size=GIB) for key in keys}}
    status = BackupStatus(
        phase="Ready", state=state, taken_at=taken_at, workload_uid=vm.uid, disks=disks, workload_spec={"cpu": 1.0}
    )
    await lab.put("backup", name, {"of": "vm/db", "to": "safe"}, status=status, finalizers=("backup",))


async def put_safe(lab: Lab, phase: str = "Ready") -> None:
    status = BackupRepositoryStatus(phase=phase, id="r", message="it can't be opened" if phase != "Ready" else "")
    await lab.put("backuprepository", "safe", {"url": "dir:///srv/safe"}, status=status, project=None)


async def find_fetched(lab: Lab) -> list[tuple[Envelope, SnapshotMarks, SnapshotStatus]]:
    """The snapshots that are, or were, fetched for what was lost."""
    found = [one for one in await lab.every("snapshot") if one.deleting_since is None]
    return [
        (one, marks, decode_part(one.status, SnapshotStatus))
        for one in found
        if (marks := decode_part(one.marks, SnapshotMarks)).automatic == "loss"
    ]


async def fetch(lab: Lab, **told: Any) -> str:
    """Wait for the next order, and report how it went; the name of the backup."""
    orders = list[tuple[BackupOrder, str]]()

    async def is_ordered() -> bool:
        asked = [
            (status.order, marks.backup) for _, marks, status in await find_fetched(lab) if status.order is not None
        ]
        orders[:] = [(order, name) for order, name in asked if order is not None]
        return bool(orders)

    await lab.until(is_ordered, 120.0)
    order, name = orders[0]
    node = next(one for one in lab.nodes.values() if one.uid == order.node_uid)
    report = BackupReport(**{"uid": order.uid, "act": "fetch", "phase": "done", **told})
    kept = [NodeSnapshot(uid=order.uid)] if report.phase == "done" else []
    await node.write_report(orders=OrderReports(backup=[report]), snapshots=kept)
    return name


async def lose_db(lab: Lab, *backups: tuple[str, float, str]) -> tuple[Envelope, Envelope]:
    """A VM with these backups, by name, time and state; its node is silent since just now."""
    pool = [NodePool("local", "p", 100 * GIB, 90 * GIB)]
    await make_nodes(lab, 4, pools=pool)
    vm, volume = await put_db(lab, on_node_loss="restart-from-backup")
    await put_safe(lab)
    for name, taken_at, state in backups:
        await put_backup(lab, vm, name, taken_at, volume.uid, state=state)
    await open_nodes(lab, 4)
    await lab.nodes["n0"].die()
    await lab.until_phase("db", "Unknown")
    return vm, volume


async def test_a_vm_goes_on_from_its_newest_good_backup_and_says_what_is_lost(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lose_db(
            lab, ("old", TAKEN_AT, "read"), ("good", TAKEN_AT + 60.0, "unproven"), ("bad", TAKEN_AT + 90.0, "damaged")
        )
        said = (await lab.status("db")).message
        assert "it restarts elsewhere from backup/good of 2023-11-14 22:14:20 UTC at 20" in said
        assert await fetch(lab) == "good"
        await lab.until_phase("db", "Running")
        status = await lab.status("db")
        assert status.lost_since == TAKEN_AT + 60.0 and (await read_volume(lab)).node == status.node != "n0"
        (event,) = [one for one in lab.journal.events if one.reason == "NodeLost"]
        assert event.message.endswith(
            "and goes on from backup/good of 2023-11-14 22:14:20 UTC: what it wrote after that is lost"
        )
        await lab.pass_time(10.0)
        assert await find_fetched(lab) == [] and await read_point(lab) is None


async def test_without_a_good_backup_that_has_all_its_disks_it_waits_and_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        vm, _ = await lose_db(lab, ("bad", TAKEN_AT, "damaged"), ("none", TAKEN_AT, "failed"))
        waits = "it waits for the node: its volume data is in local, on that node, and "
        assert (await lab.status("db")).message.endswith(f"{waits}it has no good backup")
        await put_backup(lab, vm, "small", TAKEN_AT)
        await lab.pass_time(100.0)
        node = await lab.get("/node/-/n0")
        assert node is not None and (found := node.condition("GuestsGoOn")) is not None
        assert "and no good backup has all its disks" in found.message
        assert len(await lab.allocations()) == 1
        volume = await lab.get("/volume/default/data")
        assert volume is not None

        def fail(envelope: Envelope) -> None:
            envelope.status = merge_part(envelope.status, BackupRepositoryStatus(phase="Failed", message="it is away"))

        await lab.change("/backuprepository/-/safe", fail)
        await put_backup(lab, vm, "whole", TAKEN_AT, volume.uid)
        await lab.pass_time(10.0)
        node = await lab.get("/node/-/n0")
        assert node is not None and (found := node.condition("GuestsGoOn")) is not None
        assert "backup/whole can't be had: backuprepository/safe is failed: it is away" in found.message
        await lab.change("/backuprepository/-/safe", lambda one: set_ready(one))
        assert await fetch(lab) == "whole"
        await lab.until_phase("db", "Running")


def set_ready(repository: Envelope) -> None:
    repository.status = merge_part(repository.status, BackupRepositoryStatus(phase="Ready", id="r"))


async def test_a_fetch_that_fails_is_tried_again_and_a_backup_that_turns_out_damaged_is_passed_over(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lose_db(lab, ("old", TAKEN_AT, "read"), ("new", TAKEN_AT + 60.0, "unproven"))
        assert await fetch(lab, phase="failed", reason="driverFailed", message="no space") == "new"
        assert await fetch(lab, phase="failed", reason="backupAltered", message="pack 7 is gone") == "new"
        assert await fetch(lab) == "old"
        await lab.until_phase("db", "Running")
        assert (await lab.status("db")).lost_since == TAKEN_AT
        said = [one.message for one in lab.journal.events if one.reason == "PointChanged"]
        assert len(said) == 2 and "pack 7 is gone; it goes on from backup/old of" in said[1]


async def test_a_vm_that_gets_no_place_where_its_backup_was_fetched_goes_on_elsewhere(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lose_db(lab, ("old", TAKEN_AT, "read"))
        await lab.until_refused("db", "snapshotNotReady")
        ((_, _, first),) = await find_fetched(lab)
        assert first.node is not None
        await lab.ask(first.node, "node", None, cordoned=True)
        await fetch(lab)
        await lab.pass_time(60.0)
        assert (await lab.status("db")).phase == "Pending" and len(await find_fetched(lab)) == 1
        await lab.pass_time(60.0)
        await fetch(lab)
        await lab.until_phase("db", "Running")
        assert (await lab.status("db")).node not in ("n0", first.node)


async def test_a_node_that_is_back_while_a_backup_is_fetched_keeps_its_guest_and_the_snapshot_goes(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lose_db(lab, ("old", TAKEN_AT, "read"))
        await lab.until_refused("db", "snapshotNotReady")
        assert "is there: fetched from backup/old" in (await lab.status("db")).message
        await come_back(lab, "n0")
        await lab.until_phase("db", "Running")
        await lab.pass_time(5.0)
        status = await lab.status("db")
        assert (status.node, status.lost_since, await read_point(lab)) == ("n0", None, None)
        assert await find_fetched(lab) == []


async def test_what_is_fetched_goes_with_its_vm(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lose_db(lab, ("old", TAKEN_AT, "read"))
        await lab.until_refused("db", "snapshotNotReady")
        await lab.delete("/vm/default/db")
        await lab.pass_time(10.0)
        assert await find_fetched(lab) == []


async def test_a_second_loss_takes_a_newer_backup(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        vm, volume = await lose_db(lab, ("old", TAKEN_AT, "read"))
        await fetch(lab)
        await lab.until_phase("db", "Running")
        first = (await lab.status("db")).node
        assert first is not None
        await lab.nodes[first].write_report(volumes=[volume.uid])
        await put_backup(lab, vm, "new", TAKEN_AT + 600.0, volume.uid)
        await lab.pass_time(300.0)  # two of four, but one after the other
        await lab.nodes[first].die()
        assert await fetch(lab) == "new"
        await lab.until_phase("db", "Running")
        status = await lab.status("db")
        assert status.lost_since == TAKEN_AT + 600.0 and status.node not in ("n0", first)


async def test_a_vm_from_a_snapshot_goes_on_with_its_disk_in_a_shared_pool_though_that_snapshot_is_gone(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n0", "n1"):
            await lab.add_node(name, runtimes=RUNS, pools=[SAN])
        await lab.ask("n1", "node", None, cordoned=True)
        disks = {"root": SnapshotDisk(key="root", size=GIB, pool="san")}
        at = {"node": "n0", "node_uid": lab.nodes["n0"].uid, "pool": "san", "pool_id": SAN.id, "listed": True}
        status = SnapshotStatus(phase="Ready", disks=disks, taken_at=TAKEN_AT, **at)  # type: ignore[arg-type]
        made = await lab.put("snapshot", "copy", {"of": "vm/former"}, status=status)
        await lab.nodes["n0"].write_report(snapshots=[NodeSnapshot(uid=made.uid, pool_id=SAN.id)])
        await lab.put_vm("db", on_node_loss="restart", pool="san", origin={"snapshot": "copy"})
        await lab.until_phase("db", "Running")
        await lab.store.commit([Delete(made.key)])
        await lab.ask("n1", "node", None, cordoned=False)
        await lab.nodes["n0"].die()
        await lab.until_phase("db", "Unknown")
        await lab.until_phase("db", "Running", 120.0)
        place = await find_place(lab, 2)
        assert (place.node, place.origin, len(place.continues)) == ("n1", None, 1)
