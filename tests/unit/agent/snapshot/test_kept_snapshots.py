"""A node reports the snapshots that its pools keep, and removes those that the server names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.scenario.agent_lab import change, make_allocation
from tests.unit.agent.snapshot.layer_lab import MIB, Parts

from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.watches import Deleted, Listed, Put
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot
from weft.kinds.node import NodeSnapshot
from weft.kinds.snapshot import SNAPSHOT, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.objects.envelope import Envelope

RAN = Checkpoint(run="up", made=True)


@pytest.fixture
async def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def put(parts: Parts, envelope: Envelope, checkpoint: Checkpoint = RAN) -> AllocationState:
    state = AllocationState(envelope, checkpoint, CheckpointStore(parts.host.state_dir))
    parts.table.states[envelope.uid] = state
    return state


async def test_a_snapshot_whose_disks_are_in_two_pools_is_one_and_is_where_its_root_disk_is(parts: Parts) -> None:
    parts.local.layers.add("s1", used=3 * MIB, data=["l1"])
    parts.san.layers.add("s1", used=5 * MIB, memory=2 * MIB, root=["l2"])
    parts.local.layers.add("s2", used=MIB, root=["l3"])
    await parts.kept.refresh()
    assert parts.kept.snapshots == [
        NodeSnapshot("s1", 8 * MIB, 2 * MIB, "storage-2"),
        NodeSnapshot("s2", MIB, 0, "storage-1"),
    ]


async def test_a_storage_under_two_names_counts_once(parts: Parts) -> None:
    parts.san.id = "storage-1"
    for pool in (parts.local, parts.san):
        pool.layers.add("s1", root=["l1"])
    await parts.kept.refresh()
    assert parts.kept.snapshots == [NodeSnapshot("s1", MIB, 0, "storage-1")]


async def test_only_a_change_is_news(parts: Parts) -> None:
    parts.local.layers.add("s1", root=["l1"])
    await parts.kept.refresh()
    assert parts.news.is_set()
    parts.news.clear()
    await parts.kept.refresh()
    assert not parts.news.is_set()
    parts.replace_kept(parts.local, "s1", used_bytes=7)
    await parts.kept.refresh()
    assert parts.news.is_set() and parts.kept.snapshots[0].size == 7


async def test_snapshots_of_a_pool_that_is_not_mounted_are_not_gone(parts: Parts) -> None:
    parts.san.layers.add("s1", root=["l1"])
    await parts.kept.refresh()
    parts.san.id = ""
    for kept in (parts.kept, parts.make_kept()):  # another agent, too, lists what this one did
        await kept.refresh()
        assert [one.uid for one in kept.snapshots] == ["s1"]
    parts.san.id = "storage-2"
    parts.san.layers.kept.clear()
    after = parts.make_kept()
    await after.refresh()
    assert after.snapshots == [] == parts.make_kept().snapshots


async def test_a_named_snapshot_is_removed_from_every_pool_and_the_report_lacks_it(parts: Parts) -> None:
    for pool in (parts.local, parts.san):
        pool.layers.add("s1", root=["l1"])
    parts.local.layers.add("s2", root=["l2"])
    await parts.kept.refresh()
    parts.kept.let_go(["s1", "unknown"])
    await parts.settle()
    assert [one.uid for one in parts.kept.snapshots] == ["s2"]
    assert not parts.san.layers.kept


async def test_a_snapshot_stays_reported_until_all_of_it_can_be_removed(parts: Parts) -> None:
    for pool in (parts.local, parts.san):
        pool.layers.add("s1", root=["l1"])
    await parts.kept.refresh()
    parts.san.id = ""
    parts.kept.let_go(["s1"])
    await parts.settle()
    assert [one.uid for one in parts.kept.snapshots] == ["s1"]
    parts.san.id = "storage-2"
    parts.kept.let_go(["s1"])
    await parts.settle()
    assert parts.kept.snapshots == []


async def test_a_snapshot_that_is_being_taken_or_begun_from_stays(parts: Parts) -> None:
    for uid in ("taken", "origin", "kept", "other"):
        parts.local.layers.add(uid, root=[f"l-{uid}"])
    await parts.kept.refresh()
    origin = AllocatedOrigin(snapshot="origin", generation=2, keeps=AllocatedSnapshot(uid="kept", name="before"))
    web = make_allocation(snapshots=[AllocatedSnapshot(uid="taken", name="s")], origin=origin)
    state = put(parts, web)
    parts.kept.let_go(["taken", "origin", "kept", "other"])
    await parts.settle()
    assert sorted(one.uid for one in parts.kept.snapshots) == ["kept", "origin", "taken"]
    state.update(change(web, snapshots=[]))
    state.checkpoint = Checkpoint(run="up", made=True, restored=2, begun_from=2)
    parts.kept.let_go(["taken", "origin", "kept"])
    await parts.settle()
    assert parts.kept.snapshots == []


async def test_a_workload_needs_the_snapshot_that_it_begins_from_until_it_runs(parts: Parts) -> None:
    web = make_allocation(origin=AllocatedOrigin(snapshot="origin"))
    state = put(parts, web, Checkpoint())
    assert parts.table.snapshots() == {"origin"}
    state.checkpoint = Checkpoint(run="up", made=True, begun_from=0)
    assert parts.table.snapshots() == set()


def make_snapshot(name: str, uid: str, *, deleting: bool = False, phase: str = "Ready", group: str = "") -> Envelope:
    marks = SnapshotMarks(group=group, members=["web"] if group else [])
    envelope = SNAPSHOT.make(name, SnapshotSpec(of="vm/web"), 1.0, uid=uid, project="default", marks=marks)
    envelope.status = msgspec.Raw(msgspec.json.encode(SnapshotStatus(phase=phase)))
    envelope.deleting_since = 2.0 if deleting else None
    return envelope


async def test_a_report_is_due_as_soon_as_a_snapshot_that_is_here_is_to_go(parts: Parts) -> None:
    for uid in ("s1", "s2"):
        parts.local.layers.add(uid, root=["l1"])
    await parts.kept.refresh()
    parts.news.clear()
    parts.kept.note(Put(make_snapshot("a", "s1")))
    assert not parts.news.is_set() and not parts.kept.are_to_go
    parts.kept.note(Put(make_snapshot("a", "s1", deleting=True)))
    assert parts.news.is_set() and parts.kept.are_to_go, "and reports stay frequent until it has gone"
    parts.kept.note(Deleted(make_snapshot("a", "s1", deleting=True)))
    assert not parts.kept.are_to_go
    parts.kept.note(Put(make_snapshot("g-web", "s2", phase="Failed", group="g")))
    assert parts.kept.are_to_go, "also one whose group failed"
    parts.kept.note(Listed(frozenset({"a"}), "e"))
    assert not parts.kept.are_to_go, "a restored server may have forgotten it"


async def test_a_snapshot_that_is_to_go_and_is_not_here_asks_for_no_reports(parts: Parts) -> None:
    parts.kept.note(Put(make_snapshot("a", "s1", deleting=True)))
    assert not parts.kept.are_to_go
