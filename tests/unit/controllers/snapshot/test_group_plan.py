"""What the snapshots of a group need next: all come to a turn together, and all are ready or none is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.unit.controllers.snapshot.test_snapshot_plan import DISKS, HOME, make_facts, make_place

from weft.controllers.snapshot.facts import SnapshotFacts
from weft.controllers.snapshot.group import plan_group
from weft.controllers.snapshot.plan import plan_snapshot
from weft.kinds.fields.allocated_snapshot import AllocatedSnapshot, SnapshotReport
from weft.kinds.snapshot import SnapshotMarks, SnapshotStatus

TAKING = SnapshotStatus(phase="Taking", workload_uid="w1", disks=DISKS, **HOME)


def member(name: str, status: SnapshotStatus | None = None, turn: str = "", **more: Any) -> SnapshotFacts:
    if turn:
        more["ordered"] = make_place(snapshots=[AllocatedSnapshot(uid="s1", name=name, turn=turn)])  # type: ignore[arg-type]
    facts = make_facts(status, turn=turn, **more)
    marks = SnapshotMarks(group="g", members=["a", "b"])
    return msgspec.structs.replace(facts, name=f"g-{name}", marks=marks)


def taking(name: str, turn: str, done: str = "", **report: Any) -> SnapshotFacts:
    return member(name, TAKING, turn, report=SnapshotReport(uid="s1", turn=done, **report))  # type: ignore[arg-type]


def plan(*members: SnapshotFacts, missing: tuple[str, ...] = (), now: float = 0.0) -> list[Any]:
    alone = [(facts, plan_snapshot(facts, DISKS, {"image": "tiny"}, "")) for facts in members]
    return plan_group(alone, missing, now)


def test_all_get_their_orders_or_none_does() -> None:
    both = plan(member("a"), member("b"))
    assert [(one.order, one.turn, one.status.phase) for one in both] == [("give", "prepare", "Taking")] * 2
    waits = plan(member("a"), member("b", place=None))
    assert [(one.order, one.status.phase) for one in waits] == [("", "Pending")] * 2
    assert waits[0].status.message.startswith("waits for snapshot/g-b of its group: vm/web has no place")


@pytest.mark.parametrize(("turn", "following"), [("prepare", "hold"), ("hold", "go")])
def test_a_turn_follows_once_all_are_done_with_theirs(turn: str, following: str) -> None:
    some = plan(taking("a", turn, turn), taking("b", turn))
    assert [one.order for one in some] == ["", ""]
    every = plan(taking("a", turn, turn), taking("b", turn, turn))
    assert [(one.order, one.turn) for one in every] == [("give", following)] * 2


def test_none_is_ready_before_all_are() -> None:
    ready = taking("a", "go", phase="ready", size=5)
    first = plan(ready, taking("b", "go"))
    assert [(one.status.phase, one.order) for one in first] == [("Taking", "")] * 2
    every = plan(ready, taking("b", "go", phase="ready"))
    assert [(one.status.phase, one.order) for one in every] == [("Ready", "take back")] * 2


def test_one_that_fails_fails_all_and_a_node_that_is_about_to_take_its_own_drops_it() -> None:
    failed = taking("b", "go", phase="failed", reason="noSpace", message="the pool is full")
    other, own = plan(taking("a", "go"), failed)
    assert (other.status.phase, other.status.reason, other.order, other.turn) == (
        "Failed",
        "groupFailed",
        "give",
        "drop",
    )
    assert other.status.message == "snapshot/g-b of its group failed: the pool is full"
    assert (own.status.phase, own.status.reason, own.order) == ("Failed", "noSpace", "take back")
    other, _ = plan(taking("a", "go", phase="ready", size=5), failed)
    assert (other.status.phase, other.status.size, other.order) == ("Failed", 0, "take back"), "also one that is taken"


def test_a_member_that_is_deleted_or_whose_vm_is_gone_fails_the_others() -> None:
    (alone,) = plan(taking("a", "hold", "hold"), missing=("g-b",))
    assert (alone.status.phase, alone.turn) == (
        "Failed",
        "drop",
    ) and "g-b of its group was deleted" in alone.status.message
    first, _ = plan(taking("a", "hold", "hold"), member("b", TAKING, workload=None, place=None))
    assert first.status.phase == "Failed" and "vm/web was deleted" in first.status.message


def test_one_that_has_failed_is_not_revived_by_a_node_that_kept_it() -> None:
    lost = msgspec.structs.replace(TAKING, phase="Failed", reason="placeLost")
    facts = member("a", lost, kept=[("n1", "u1")])
    assert plan_snapshot(facts, DISKS, {}, "").status.phase == "Failed"


def test_a_deleted_member_is_dropped_by_its_node_first() -> None:
    facts = member("a", TAKING, "hold", deleting=True)
    planned = plan_snapshot(facts, DISKS, {}, "")
    assert (planned.release, planned.order, planned.turn) == (False, "give", "drop")


def test_members_that_are_created_one_after_the_other_wait_for_the_rest_and_not_for_ever() -> None:
    (first,) = plan(member("a"), missing=("g-b",), now=59.0)
    assert (first.order, first.status.phase, first.status.reason) == ("", "Pending", "groupWaits")
    assert first.status.message == "waits until snapshot/g-b of its group is created"
    (late,) = plan(member("a"), missing=("g-b",), now=60.0)
    assert (late.status.phase, late.status.message) == (
        "Failed",
        "snapshot/g-b of its group was not created within 1m",
    )
    (gone,) = plan(taking("a", "hold", "hold"), missing=("g-b",))
    assert gone.status.phase == "Failed", "once all had their orders, it was there"


def test_a_member_that_can_not_begin_fails_its_group_in_the_end() -> None:
    blocked = member("b", place=None)
    assert [one.status.phase for one in plan(member("a"), blocked, now=899.0)] == ["Pending"] * 2
    every = plan(member("a"), blocked, now=900.0)
    assert [(one.status.phase, one.status.reason, one.order) for one in every] == [("Failed", "groupFailed", "")] * 2
    assert "snapshot/g-b of its group could not begin within 15m: vm/web has no place" in every[0].status.message


@pytest.mark.parametrize(("turn", "seconds"), [("prepare", 120.0), ("hold", 30.0)])
def test_a_turn_that_a_member_does_not_come_to_the_end_of_fails_the_group(turn: str, seconds: float) -> None:
    late = taking("b", turn, message="it begins once the VM runs")
    assert [one.order for one in plan(taking("a", turn, turn), late, now=seconds - 1)] == ["", ""]
    every = plan(taking("a", turn, turn), late, now=seconds)
    assert [(one.status.phase, one.order, one.turn) for one in every] == [("Failed", "give", "drop")] * 2
    assert every[0].status.message.endswith("it begins once the VM runs"), every[0].status.message


def test_a_dead_node_fails_the_group_at_its_last_turn_and_memory_that_is_being_saved_does_not() -> None:
    ready = taking("a", "go", phase="ready", size=5)
    saving = taking("b", "go", "hold", message="its memory is being saved")
    assert [one.status.phase for one in plan(ready, saving, now=3600.0)] == ["Taking"] * 2
    dead = msgspec.structs.replace(saving, home_reports=False)
    assert [one.status.phase for one in plan(ready, dead, now=59.0)] == ["Taking"] * 2
    first, second = plan(ready, dead, now=60.0)
    assert (first.status.phase, first.status.size, first.order) == ("Failed", 0, "take back")
    assert (second.status.phase, second.order, second.turn) == ("Failed", "give", "drop")
    assert first.status.message == "snapshot/g-b of its group was not taken within 1m: its node does not report"
