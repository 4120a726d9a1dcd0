"""What a snapshot needs next: which word counts, its node's list or an allocation's report, and what is waited for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.snapshot.facts import KeptSnapshot, SnapshotFacts
from weft.controllers.snapshot.plan import plan_snapshot
from weft.informer.view import Item
from weft.kinds.allocation import AllocationReport, AllocationSpec, Resources
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot, SnapshotReport
from weft.kinds.node import NodeSnapshot
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.snapshot import SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref

DISKS = {"root": SnapshotDisk(key="root", size=8), "data": SnapshotDisk(key="v1", size=9)}
HOME = {"node": "n1", "node_uid": "u1"}


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def make_place(report: AllocationReport | None = None, **spec: Any) -> Item:
    full = AllocationSpec(
        node="n1", node_uid="u1", workload=Ref("vm", "web", "w1", "default"), workload_generation=1, incarnation=1,
        resources=Resources(cpu=1, memory=1), **spec,
    )  # fmt: skip
    envelope = Envelope(kind="allocation", name="u1.a", uid="a", spec=raw(full))
    envelope.report = raw(report or AllocationReport())
    return Item(envelope)


WEB = Item(VM.make("web", VmSpec(image="tiny"), 1.0, uid="w1", project="default"))
ORDER = AllocatedSnapshot(uid="s1", name="a")


def make_facts(status: SnapshotStatus | None = None, **more: Any) -> SnapshotFacts:
    known: dict[str, Any] = {"workload": WEB, "place": make_place(), "home_exists": True, "home_reports": True, **more}
    deleting = known.pop("deleting", False)
    kept = known.pop("kept", ())
    return SnapshotFacts(
        name="a", uid="s1", deleting=deleting, spec=SnapshotSpec(of="vm/web"), marks=SnapshotMarks(),
        status=status or SnapshotStatus(), what="vm/web",
        kept=[KeptSnapshot(node, uid, NodeSnapshot("s1", 7)) for node, uid in kept], **known,
    )  # fmt: skip


def plan(facts: SnapshotFacts) -> Any:
    return plan_snapshot(facts, DISKS, {"image": "tiny"}, "before")


def test_an_order_notes_what_the_vm_is_before_its_node_begins() -> None:
    planned = plan(make_facts())
    status = planned.status
    assert (planned.order, status.phase, status.workload_uid, status.parent) == ("give", "Taking", "w1", "before")
    assert (status.disks, status.workload_spec, status.node) == (DISKS, {"image": "tiny"}, "n1")


def test_a_schedules_snapshot_waits_for_a_vm_that_leaves_and_ends_once_it_has_left() -> None:
    to = AllocatedMigration(key="m", peer="west/n1", peer_uid="u9", peer_allocation="t", peer_ca="CA")
    envelope = VM.make("web", VmSpec(image="tiny"), 1.0, uid="w1", project="default")
    envelope.status = raw(WorkloadStatus(phase="Running", node="n1", migration="web-1"))
    of_schedule = SnapshotMarks(automatic="schedule")
    facts = make_facts(workload=Item(envelope), place=make_place(role="source", migration=to))
    planned = plan(msgspec.structs.replace(facts, marks=of_schedule))
    assert (planned.order, planned.status.phase, planned.status.reason) == ("", "Pending", "isMigrating")
    assert "migration/web-1" in planned.status.message
    marks = WorkloadMarks(departed="west/default/web")
    left = Item(VM.make("web", VmSpec(image="tiny", run="stop"), 1.0, uid="w1", project="default", marks=marks))
    planned = plan(msgspec.structs.replace(facts, marks=of_schedule, status=planned.status, workload=left, place=None))
    assert planned.status.phase == "Failed" and "migrated to west/default/web" in planned.status.message


def stopped(automatic: Any = "", **spec: Any) -> SnapshotFacts:
    envelope = VM.make("web", VmSpec(image="tiny"), 1.0, uid="w1", project="default")
    envelope.status = raw(WorkloadStatus(phase="Stopped", node="n1"))
    wish, marks = SnapshotSpec(of="vm/web", **spec), SnapshotMarks(automatic=automatic)
    return msgspec.structs.replace(make_facts(workload=Item(envelope)), spec=wish, marks=marks)


def test_memory_of_a_vm_that_has_stopped_meanwhile_fails_peoples_snapshot_and_others_do_without() -> None:
    planned = plan(stopped(memory=True))
    assert (planned.status.phase, planned.status.reason, planned.order) == ("Failed", "noMemory", "")
    assert planned.status.message == "vm/web is stopped, so it has no memory to keep"
    for automatic in ("schedule", "clone"):
        planned = plan(stopped(memory=True, automatic=automatic))
        assert (planned.order, planned.memory) == ("give", False), automatic
    assert plan(msgspec.structs.replace(make_facts(), spec=SnapshotSpec(of="vm/web", memory=True))).memory


def test_only_the_disks_that_the_node_took_are_in_the_snapshot() -> None:
    taking = SnapshotStatus(phase="Taking", workload_uid="w1", disks=DISKS, **HOME)
    report = SnapshotReport(uid="s1", phase="ready", disks={"root": 16}, size=5, taken_at=2.0, consistency="stopped")
    planned = plan(make_facts(taking, ordered=make_place(snapshots=[ORDER]), report=report))
    assert (planned.order, planned.status.phase, planned.status.consistency) == ("take back", "Ready", "stopped")
    assert planned.status.disks == {"root": SnapshotDisk(key="root", size=16)}


@pytest.mark.parametrize(
    ("more", "phase", "reason"),
    [
        ({}, "Failed", "placeLost"),
        ({"workload": None, "place": None}, "Failed", "vmGone"),
        ({"kept": [("n1", "u1")]}, "Ready", ""),
        ({"unknown": True}, "Taking", ""),  # a node may yet list it
    ],
)
def test_a_snapshot_whose_order_is_gone_is_what_nodes_list(more: dict[str, Any], phase: str, reason: str) -> None:
    taking = SnapshotStatus(phase="Taking", workload_uid="w1", disks=DISKS, **HOME)
    status = plan(make_facts(taking, **more)).status
    assert (status.phase, status.reason) == (phase, reason)


@pytest.mark.parametrize(
    ("more", "phase"),
    [
        ({}, "Failed"),
        ({"home_reports": False}, "Ready"),  # its node is lost, not its data
        ({"unknown": True}, "Ready"),
        ({"kept": [("n2", "u2")]}, "Ready"),  # its pool is another node's now
    ],
)
def test_a_ready_snapshot_is_lost_only_by_the_word_of_its_node(more: dict[str, Any], phase: str) -> None:
    ready = SnapshotStatus(phase="Ready", workload_uid="w1", listed=True, size=7, **HOME)
    status = plan(make_facts(ready, **more)).status
    assert status.phase == phase and status.size == (7 if phase == "Ready" else 0)
    assert status.node == ("n2" if more.get("kept") else "n1")


def test_a_snapshot_whose_node_was_deleted_is_unavailable_until_that_is_back() -> None:
    ready = SnapshotStatus(phase="Ready", workload_uid="w1", listed=True, size=7, **HOME)
    gone = {"home_exists": False, "home_reports": False, "is_lost": True}
    assert plan(make_facts(ready, unknown=True, **gone)).status.phase == "Ready"
    lost = plan(make_facts(ready, **gone)).status
    assert (lost.phase, lost.reason, lost.size) == ("Unavailable", "nodeDeleted", 7)
    assert lost.message == "its data is on node n1, which was deleted; it is available once that node is back"
    assert plan(make_facts(lost, **gone)).status == lost
    assert plan(make_facts(lost, kept=[("n1", "u1")])).status.phase == "Ready"
    assert plan(make_facts(lost)).status.reason == "dataGone"


def test_another_node_that_lists_it_is_not_believed_while_its_home_has_not_listed_it_yet() -> None:
    ready = SnapshotStatus(phase="Ready", workload_uid="w1", **HOME)
    assert plan(make_facts(ready, kept=[("n2", "u2")])).status.node == "n1"


@pytest.mark.parametrize(
    ("more", "released", "words"),
    [
        ({}, True, ""),
        ({"kept": [("n1", "u1")]}, False, "n1 still has"),
        ({"unknown": True}, False, "since the store was restored"),
        ({"ordered": make_place(snapshots=[ORDER])}, False, "ended taking it"),
    ],
)
def test_a_deleted_snapshot_goes_once_nothing_of_it_is_left_anywhere(
    more: dict[str, Any], released: bool, words: str
) -> None:
    ready = SnapshotStatus(phase="Taking", workload_uid="w1", **HOME)
    planned = plan(make_facts(ready, deleting=True, **more))
    assert planned.release == released and words in planned.status.message


def test_what_a_restore_kept_is_awaited_until_its_node_lists_it() -> None:
    origin = AllocatedOrigin(snapshot="s0", generation=4, keeps=ORDER)
    place = make_place(AllocationReport(restored=4), origin=origin)
    taking = SnapshotStatus(phase="Taking", workload_uid="w1", **HOME)
    assert plan(make_facts(taking, place=place)).status.phase == "Taking"
    assert not plan(make_facts(taking, place=place, deleting=True)).release
    assert plan(make_facts(taking, place=place, kept=[("n1", "u1")])).status.phase == "Ready"


def test_one_whose_node_is_away_says_that_it_waits_for_the_node_until_that_is_back() -> None:
    taking = SnapshotStatus(phase="Taking", workload_uid="w1", disks=DISKS, **HOME)
    working = SnapshotReport(uid="s1", phase="taking", message="freezes")
    facts = make_facts(taking, ordered=make_place(snapshots=[ORDER]), report=working, silent="n1", home_reports=False)
    waits = plan(facts).status
    assert (waits.phase, waits.reason) == ("Taking", "nodeNotReady")
    assert waits.message == "waits: node n1 sends no heartbeat"
    back = plan(msgspec.structs.replace(facts, status=waits, silent="", home_reports=True)).status
    assert (back.reason, back.message) == ("", "freezes")
    other = make_place(snapshots=[AllocatedSnapshot(uid="s0", name="first")])
    second = plan(make_facts(place=other, silent="n1")).status
    assert second.message == "snapshot/first of vm/web is being taken first; node n1 sends no heartbeat"
