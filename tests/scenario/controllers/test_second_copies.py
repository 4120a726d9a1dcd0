"""VMs with a second copy on another node of their cluster, with pretended nodes and time moved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.scenario.clusters.test_replication import until
from tests.scenario.controllers_lab import GIB
from tests.scenario.migration_lab import MovingLab
from tests.scenario.snapshot_lab import SnapshotNode, join

from weft.kinds.fields.replication.work import ReceivedDisk, ReceiveOrder, ReceiveReport, SendOrder, SendReport
from weft.kinds.node import NodePool, NodeSnapshot
from weft.kinds.orders import OrderReports
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replica import ReplicaMarks, ReplicaStatus
from weft.kinds.replication import ReplicationStatus
from weft.objects.envelope import decode_part

LEFT, INTO = "/replication/default/web-copy", "/replica/default/web-copy"


async def make_nodes(lab: MovingLab, count: int, pool: str = "local") -> list[SnapshotNode]:
    nodes = [await join(lab, f"n{index}") for index in range(count)]
    for index, node in enumerate(nodes):
        own = NodePool("local", f"p{index}", 100 * GIB, 90 * GIB)
        shared = NodePool("san", "s", 100 * GIB, 90 * GIB)
        await node.write_report(pools=[own, shared])
    for node in nodes[1:]:
        await lab.ask(node.name, "node", None, cordoned=True)
    await lab.pass_time(2.0)
    return nodes


async def copy_point(
    lab: MovingLab, source: str, number: int, *volumes: str, after: int = -1
) -> tuple[SendOrder, ReceiveOrder]:
    """What both nodes do for the next point, once they are ordered to."""

    def is_next(status: Any) -> bool:
        return status.order is not None and (status.point.number if status.point is not None else 0) == (
            number - 1 if after < 0 else after
        )

    send = (await until(lab, LEFT, ReplicationStatus, is_next)).order
    into = await until(lab, INTO, ReplicaStatus, lambda s: s.order is not None and s.order.number == number)
    take, there = into.order, lab.nodes[into.node]
    assert (send.cluster, send.node_uid, send.generation) == ("", lab.nodes[source].uid, take.generation)
    report = ReceiveReport(
        uid=take.uid,
        snapshot=take.snapshot,
        phase="done",
        source=send.snapshot,
        disks={"root": ReceivedDisk("root", GIB), **{name: ReceivedDisk(send.disks[name], GIB) for name in volumes}},
        taken_at=send.taken_at,
        age_seconds=3.0,
    )
    listed = [*there.report.snapshots, NodeSnapshot(uid=take.snapshot, size=1 << 20, pool_id="p")]
    await there.write_report(orders=OrderReports(receive=[report]), snapshots=listed)
    done = SendReport(uid=send.uid, attempt=send.attempt, phase="done", number=number, is_whole=not send.since)
    await lab.nodes[source].write_report(orders=OrderReports(send=[done]))
    await until(lab, LEFT, ReplicationStatus, lambda s: s.point is not None and s.point.number == number)
    await until(lab, INTO, ReplicaStatus, lambda s: bool(s.points) and s.points[-1].number == number)
    return send, take


async def until_copied(lab: MovingLab, status: str, words: str) -> None:
    async def is_so() -> bool:
        found = (await lab.vm("web")).condition("Copied")
        return found is not None and found.status == status and words in found.message

    await lab.until(is_so)


async def test_a_vm_goes_on_from_its_second_copy_and_is_copied_to_a_third_node_fenced_from_the_first(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 3)
        await lab.put_vm("web", on_node_loss="restart", copies=2)
        await lab.until_phase("web", "Running")
        await copy_point(lab, "n0", 1)
        send, take = await copy_point(lab, "n0", 2)
        assert take.parent and send.since
        home = (await until(lab, INTO, ReplicaStatus, lambda s: len(s.points) == 2)).node
        assert home != "n0" and (await until(lab, LEFT, ReplicationStatus, lambda s: s.node)).node == home
        await until_copied(lab, "True", f"node {home} has a copy, at most 1m old: weft replication list web-copy")
        (other,) = {"n1", "n2"} - {home}
        for name in ("n1", "n2"):
            await lab.ask(name, "node", None, cordoned=False)

        newest = lab.clock.now()
        await lab.nodes["n0"].die()
        await lab.until_phase("web", "Unknown")
        await lab.until_phase("web", "Running", 200.0)
        status = await lab.status("web")
        assert status.node == home and status.lost_since is not None and newest - 60.0 < status.lost_since <= newest
        into = await lab.get(INTO)
        assert into is not None and decode_part(into.marks, ReplicaMarks).generation == 2
        await until(lab, LEFT, ReplicationStatus, lambda s: s.point is None or s.point.generation == 2)
        again, taken = await copy_point(lab, home, 3, after=0)
        assert (again.since, again.generation, taken.parent, taken.node_uid) == ("", 2, "", lab.nodes[other].uid)
        await until(lab, INTO, ReplicaStatus, lambda s: [one.generation for one in s.points] == [2])
        assert decode_part((await lab.vm("web")).marks, WorkloadMarks).continues is None


async def test_a_second_loss_before_the_next_copy_waits_and_says_why(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await lab.put_vm("web", on_node_loss="restart", copies=2)
        await lab.until_phase("web", "Running")
        await copy_point(lab, "n0", 1)
        await lab.ask("n1", "node", None, cordoned=False)
        await lab.nodes["n0"].die()
        await lab.until_phase("web", "Unknown")
        await lab.until_phase("web", "Running", 200.0)
        await until_copied(lab, "False", "the VM has come to node n1")
        await lab.add_node("n2")
        await lab.nodes["n1"].die()
        await lab.until_phase("web", "Unknown")
        await lab.pass_time(200.0)
        status = await lab.status("web")
        assert (status.phase, status.node) == ("Unknown", "n1") and "no point yet" in status.message, status


async def test_copies_wait_for_another_node_follow_the_volumes_and_go_with_the_spec(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 1)
        await lab.put("volume", "data", {"size": GIB, "copies": 2}, finalizers=("volume",))
        await lab.put_vm("web", volumes=["data"])
        await until_copied(lab, "False", "no other ready node has storage pool local")
        assert not list(await lab.every("snapshot")), "nothing is taken that could not be sent"
        await join(lab, "n1")
        await lab.nodes["n1"].write_report(pools=[NodePool("local", "p1", 100 * GIB, 90 * GIB)])
        await copy_point(lab, "n0", 1, "data")
        await until_copied(lab, "True", "node n1 has a copy")
        await lab.change_spec("data", "volume", copies=1)
        await until(lab, LEFT, ReplicationStatus, lambda s: s.phase == "Deleting")
        for node in lab.nodes.values():
            await node.write_report(snapshots=[])
        await lab.until(lambda: gone(lab))
        await until_copied(lab, "False", "its spec has no second copy")


async def gone(lab: MovingLab) -> bool:
    return not [one for kind in ("replication", "replica", "snapshot") for one in await lab.every(kind)]


async def test_disks_that_other_nodes_have_too_get_no_copy(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await lab.put_vm("web", pool="san", copies=2)
        await until_copied(lab, "False", "the root disk is in pool san, which other nodes have too")
        assert await gone(lab)


async def test_an_encrypted_volume_keeps_its_vm_from_being_copied_and_nothing_is_tried(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await lab.put("volume", "safe", {"size": GIB, "encrypted": True}, finalizers=("volume",))
        await lab.put_vm("web", volumes=["safe"], copies=2)
        await until_copied(lab, "False", "volume safe is encrypted, and no copy of such a disk can be made")
        assert await gone(lab)


async def test_a_copy_that_nobody_wants_any_more_stays_while_it_may_be_all_that_is_left(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await lab.put_vm("web", on_node_loss="restart", copies=2)
        await lab.until_phase("web", "Running")
        await copy_point(lab, "n0", 1)
        await lab.ask("n1", "node", None, cordoned=False)
        await lab.nodes["n0"].die()
        await lab.until_phase("web", "Unknown")
        await lab.change_spec("web", "vm", copies=1)
        await until_copied(
            lab, "False", "its copy is kept until node n0 sends heartbeats again: it may be all that is left"
        )
        await lab.until_phase("web", "Running", 200.0)
        status = await lab.status("web")
        assert status.node == "n1" and status.lost_since is not None
        await until_copied(lab, "False", "its spec has no second copy")
        await lab.nodes["n1"].write_report(snapshots=[])
        await lab.pass_time(10.0)
        assert not [*await lab.every("replication"), *await lab.every("replica")]


async def test_a_vm_that_is_deleted_while_its_node_is_silent_is_gone_once_its_guest_has_surely_ended(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        await make_nodes(lab, 2)
        await lab.put("volume", "data", {"size": GIB}, finalizers=("volume",))
        await lab.put_vm("web", on_node_loss="restart", volumes=["data"])
        await lab.put_vm("old", on_node_loss="wait")
        for name in ("web", "old"):
            await lab.until_phase(name, "Running")
        await lab.nodes["n0"].die()
        await lab.until_phase("web", "Unknown")
        for name in ("web", "old"):
            await lab.delete(f"/vm/default/{name}")
        await lab.until_phase("web", "Shutdown")
        told = (await lab.status("web")).message
        assert "the workload is gone at " in told and told.endswith("if the node isn't heard of before"), told
        await lab.pass_time(200.0)
        assert await lab.get("/vm/default/web") is None
        assert (await lab.status("old")).message.endswith("the workload is removed there when the node returns")
