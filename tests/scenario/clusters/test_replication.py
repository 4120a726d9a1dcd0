"""Replication as the controllers of both clusters see to it, with a pretend node on either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.replication.work import ReceivedDisk, ReceiveOrder, ReceiveReport, SendOrder, SendReport
from weft.kinds.node import NodePool, NodeReport, NodeSnapshot
from weft.kinds.orders import OrderReports
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.replica import ReplicaStatus
from weft.kinds.replication import ReplicationStatus
from weft.kinds.snapshot import SnapshotStatus
from weft.kinds.vm import VmActions, VmSpec
from weft.objects.envelope import Envelope, decode_part, merge_part

LOCAL = NodePool("local", "p", 100 * GIB, 90 * GIB)
SPEC = {
    "of": "vm/web",
    "origin": "there",
    "workload": {"image": "tiny", "memory": 64 << 20},
    "disks": {"root": GIB, "data": GIB},
    "keep": 2,
}


async def read(lab: MovingLab, key: str, type_: type[Any]) -> Any:
    envelope = await lab.get(key)
    return None if envelope is None else decode_part(envelope.status, type_)


async def until(lab: MovingLab, key: str, type_: type[Any], holds: Any) -> Any:
    found: list[Any] = []

    async def does_hold() -> bool:
        status = await read(lab, key, type_)
        found[:] = [status]
        return status is not None and bool(holds(status))

    await lab.until(does_hold)
    return found[0]


async def send(lab: MovingLab, node: SnapshotNode, key: str, attempt: int, **said: Any) -> SendOrder:
    """Wait for this order, and report on it."""
    status = await until(
        lab, key, ReplicationStatus, lambda status: status.order is not None and status.order.attempt == attempt
    )
    order: SendOrder = status.order
    await node.write_report(orders=OrderReports(send=[SendReport(uid=order.uid, attempt=attempt, **said)]))
    return order


async def read_spec(lab: MovingLab, key: str) -> VmSpec:
    envelope = await lab.get(key)
    assert envelope is not None
    return decode_part(envelope.spec, VmSpec)


async def read_fence(lab: MovingLab) -> tuple[str, str]:
    """Whether vm/web runs, and the replication that left it to another cluster."""
    envelope = await lab.vm("web")
    return decode_part(envelope.spec, VmSpec).run, decode_part(envelope.marks, WorkloadMarks).fenced


async def receive(lab: MovingLab, node: SnapshotNode, key: str, number: int, *, data: bool = True) -> ReceiveOrder:
    """Wait for the order for this point, and take it in."""
    status = await until(
        lab, key, ReplicaStatus, lambda status: status.order is not None and status.order.number == number
    )
    order: ReceiveOrder = status.order
    listed = [*(await node_report(lab)).snapshots, NodeSnapshot(uid=order.snapshot, size=1 << 20, pool_id="p")]
    report = ReceiveReport(
        uid=order.uid,
        snapshot=order.snapshot,
        phase="done",
        source=f"s{number}",
        disks={"root": ReceivedDisk("root", GIB), **({"data": ReceivedDisk("v1", GIB)} if data else {})},
        bytes=7,
        taken_at=5.0,
        age_seconds=2.0,
        consistency="crash",
    )
    await node.write_report(orders=OrderReports(receive=[report]), snapshots=listed)
    return order


async def node_report(lab: MovingLab) -> NodeReport:
    envelope = await lab.get("/node/-/n1")
    assert envelope is not None
    return decode_part(envelope.report, NodeReport)


async def replicate_vm(lab: MovingLab) -> tuple[SnapshotNode, Envelope, Envelope]:
    """A VM that runs on a node, and its replication to a linked cluster: the node, the VM, the replication."""
    node = await join(lab)
    await node.write_report(pools=[LOCAL])
    await put_cluster(lab)
    vm = await lab.put_vm("web")
    await lab.until_phase("web", "Running")
    spec = {"of": "vm/web", "cluster": "west", "rpo": 60.0}
    return node, vm, await lab.put("replication", "web", spec, finalizers=("replication",))


async def put_cluster(lab: MovingLab) -> None:
    spec = {"url": "https://10.0.0.1:6443", "ca": "", "projects": {"default": "lab"}}
    made = await lab.put("cluster", "west", spec, project=None)

    def link(envelope: Envelope) -> None:
        envelope.status = merge_part(envelope.status, msgspec.defstruct("S", [("phase", str, "Linked")])())

    await lab.change(made.key, link)


async def test_points_are_sent_one_after_the_other_and_a_failure_is_tried_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node, _, made = await replicate_vm(lab)
        order = await send(lab, node, made.key, 1, phase="done", number=1, bytes=100, seconds=0.5, is_whole=True)
        assert (order.since, order.project, order.replica, order.manifest["origin"]) == ("", "lab", "web", made.uid)
        assert order.manifest["workload"]["image"] == "tiny" and set(order.disks) == {"root"}
        status = await until(lab, made.key, ReplicationStatus, lambda status: status.point is not None)
        assert (status.phase, status.point.number) == ("Replicating", 1)

        again = await send(lab, node, made.key, 2, phase="failed", reason="streamLost", message="cut")
        assert again.since == order.snapshot
        await until(lab, made.key, ReplicationStatus, lambda status: status.phase == "Interrupted")
        third = await send(lab, node, made.key, 3, phase="done", number=2, bytes=9, seconds=0.1)
        assert third.since == order.snapshot and third.snapshot != again.snapshot
        status = await until(
            lab, made.key, ReplicationStatus, lambda status: status.point is not None and status.point.number == 2
        )
        assert (status.phase, status.failures, status.point.snapshot_uid) == ("Replicating", 0, third.snapshot)

        await lab.delete(made.key)
        await until(lab, made.key, ReplicationStatus, lambda status: status.phase == "Deleting")
        await node.write_report(snapshots=[])  # as the server asked
        await lab.until_gone(made.key)


async def test_places_of_a_vm_are_marked_for_as_long_as_its_copy_could_be_promoted(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node, _, made = await replicate_vm(lab)
        other = await lab.put("replication", "other", {"of": "vm/web", "cluster": "south"}, finalizers=("replication",))

        async def is_marked() -> bool:
            (place,) = await lab.every("allocation")
            return decode_part(place.spec, AllocationSpec).replicated

        await until(lab, other.key, ReplicationStatus, lambda status: status.reason == "clusterMissing")
        assert not await is_marked()
        await send(lab, node, made.key, 1, phase="done", number=4, bytes=100, seconds=0.5, is_whole=True)
        await lab.until(is_marked)
        await lab.delete(other.key)
        await lab.until_gone(other.key)
        assert await is_marked()
        await lab.delete(made.key)
        await node.write_report(snapshots=[])
        await lab.until_gone(made.key)
        assert not await is_marked()


async def test_a_paused_replication_hears_of_a_promotion_and_stops_its_vm(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node, _, made = await replicate_vm(lab)
        await send(lab, node, made.key, 1, phase="done", number=1, bytes=100, seconds=0.5, is_whole=True)

        await until(lab, made.key, ReplicationStatus, lambda status: status.point is not None)

        def pause(envelope: Envelope) -> None:
            envelope.spec = merge_part(envelope.spec, msgspec.defstruct("S", [("paused", bool)])(True))

        await lab.change(made.key, pause)
        asked = await until(lab, made.key, ReplicationStatus, lambda status: status.ask is not None)
        ask = asked.ask
        assert (asked.order, ask.attempt, ask.node_uid, ask.cluster, ask.replica) == (None, 2, node.uid, "west", "web")
        found = SendReport(uid=ask.uid, attempt=2, phase="failed", reason="staleGeneration", message="promoted")
        await node.write_report(orders=OrderReports(ask=[found]))
        await lab.until_phase("web", "Stopped")
        assert await read_fence(lab) == ("stop", "web")
        assert (await read(lab, made.key, ReplicationStatus)).phase == "Stale"


async def test_points_that_come_are_snapshots_and_the_oldest_goes(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        node = await join(lab)
        await node.write_report(pools=[LOCAL])
        made = await lab.put("replica", "web", SPEC, finalizers=("replica",))
        orders = [await receive(lab, node, made.key, number) for number in (1, 2, 3)]
        assert [order.parent for order in orders] == ["", orders[0].snapshot, orders[1].snapshot]
        assert [order.parent_source for order in orders] == ["", "s1", "s2"]
        status = await until(lab, made.key, ReplicaStatus, lambda status: len(status.points) == 2)
        assert (status.phase, [one.number for one in status.points]) == ("Standby", [2, 3])
        newest = status.points[-1]
        taken = await until(lab, f"/snapshot/default/{newest.snapshot}", SnapshotStatus, lambda one: one.phase)
        assert (taken.phase, taken.consistency, taken.workload_spec["image"]) == ("Ready", "crash", "tiny")
        assert {name: disk.key for name, disk in taken.disks.items()} == {"root": "root", "data": "v1"}
        await lab.delete(made.key)
        await until(lab, made.key, ReplicaStatus, lambda status: status.phase == "Deleting")
        await node.write_report(snapshots=[])  # as the server asked
        await lab.until_gone(made.key)


async def test_a_vm_whose_replica_was_promoted_is_stopped_and_goes_back_to_what_comes_from_there(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        node, vm, made = await replicate_vm(lab)
        common = await send(lab, node, made.key, 1, phase="done", number=4, bytes=100, seconds=0.5, is_whole=True)
        await send(lab, node, made.key, 2, phase="failed", reason="staleGeneration", message="promoted")
        await lab.until_phase("web", "Stopped")
        assert await read_fence(lab) == ("stop", "web")
        told = await until(lab, vm.key, WorkloadStatus, lambda status: status.reason)
        assert (told.reason, told.message) == ("fenced", "runs at west")
        assert "Stopped on n1: runs at west" in [event.message for event in lab.journal.events]

        back = {**SPEC, "disks": {"root": GIB}, "origin": "back", "returns": made.uid}
        for name, creator in (("mine", "somebody"), ("web", "cluster:west")):
            lab.creator = creator
            replica = await lab.put("replica", name, back, finalizers=("replica",))
        order = await receive(lab, node, replica.key, 5, data=False)
        assert (order.parent, order.parent_source, order.node_uid) == (common.snapshot, common.snapshot, node.uid)
        other = await until(lab, "/replica/default/mine", ReplicaStatus, lambda status: status.order is not None)
        assert (other.order.parent, other.vm) == ("", "")  # it was not made by the cluster that has the VM
        status = await until(lab, replica.key, ReplicaStatus, lambda status: len(status.points) == 2)
        assert status.vm == "web"

        def promote(envelope: Envelope) -> None:
            envelope.marks = merge_part(
                envelope.marks, msgspec.defstruct("S", ["role", "promoted", "became"])("primary", 5, "web")
            )

        await lab.change(replica.key, promote)
        await until(lab, replica.key, ReplicaStatus, lambda status: status.phase == "Promoted")
        asked = decode_part((await lab.vm("web")).actions, VmActions).restore
        assert await read_fence(lab) == ("run", "")
        assert asked is not None and asked.snapshot == status.points[-1].snapshot
        await lab.until_phase("web", "Running")
        assert node.begun_from["web"].snapshot == order.snapshot
        await lab.until_gone(made.key)

        again = await lab.put("replication", "again", {"of": "vm/web", "cluster": "west"}, finalizers=("replication",))
        sent = await send(lab, node, again.key, 1, phase="failed", reason="staleGeneration", message="promoted")
        assert (sent.since, sent.manifest["returns"]) == (order.snapshot, "back")
        await until(lab, replica.key, ReplicaStatus, lambda status: status.phase == "Deleting")
