"""What a replica does next: one node with the capacity, one order at a time, its newest points kept."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.controllers.replica.plan import RESEED_SECONDS, CandidateNode, ReplicaFacts, Returned, plan_replica
from weft.kinds.fields.replication.work import ReceivedDisk, ReceiveReport
from weft.kinds.replica import Point, ReplicaMarks, ReplicaSpec, ReplicaStatus

NOW = 10_000.0
N1, N2 = CandidateNode("n1", "node-1", 1000), CandidateNode("n2", "node-2", 500)


def make_facts(status: ReplicaStatus | None = None, **changes: Any) -> ReplicaFacts:
    facts = ReplicaFacts(
        name="web",
        uid="r",
        deleting=False,
        spec=ReplicaSpec(of="vm/web", origin="o", disks={"root": 300, "data": 100}, keep=3),
        marks=ReplicaMarks(),
        status=status or ReplicaStatus(),
        snapshots=frozenset(),
        places=(N1, N2),
        fresh_uid="fresh-1",
    )
    return msgspec.structs.replace(facts, **changes)


def make_point(number: int) -> Point:
    return Point(number=number, snapshot=f"web-{number}", snapshot_uid=f"p{number}", source=f"s{number}")


def seed(*numbers: int) -> ReplicaFacts:
    """One that has these points on n1, and an order for the next."""
    status = ReplicaStatus(points=[make_point(one) for one in numbers], node="n1", node_uid="node-1")
    facts = make_facts(status, snapshots=frozenset(f"p{one}" for one in numbers), node_exists=True)
    return msgspec.structs.replace(facts, status=plan_replica(facts, NOW).status)


def finish(facts: ReplicaFacts, **changes: Any) -> ReplicaFacts:
    order = facts.status.order
    assert order is not None
    report = ReceiveReport(
        uid="r",
        snapshot=order.snapshot,
        phase="done",
        source=f"s{order.number}",
        disks={"root": ReceivedDisk("root", 300)},
        bytes=7,
        taken_at=5.0,
        age_seconds=2.0,
    )
    return msgspec.structs.replace(facts, **{"report": report, "is_listed": True, "fresh_uid": "fresh-2", **changes})


def test_the_node_with_the_most_free_gets_the_first_point() -> None:
    status = plan_replica(make_facts(), NOW).status
    order = status.order
    assert (status.node, status.phase) == ("n1", "Pending")
    assert order is not None
    assert (order.number, order.snapshot, order.parent, order.generation) == (1, "fresh-1", "", 1)
    assert order.disks == {"root": 300, "data": 100}


def test_without_the_capacity_it_takes_nothing_and_says_why() -> None:
    plan = plan_replica(make_facts(places=(CandidateNode("n1", "node-1", 399),)), NOW)
    assert (plan.status.order, plan.status.reason, plan.status.phase) == (None, "noPlace", "Pending")
    assert "400 B free" in plan.status.message


def test_a_point_that_came_becomes_a_snapshot_and_the_next_stands_on_it() -> None:
    plan = plan_replica(finish(seed(1)), NOW)
    assert plan.arrived is not None
    assert (plan.arrived.number, plan.arrived.snapshot_uid, plan.arrived.age_seconds) == (2, "fresh-1", 2.0)
    order = plan.status.order
    assert order is not None
    assert (order.number, order.snapshot, order.parent, order.parent_source) == (3, "fresh-2", "fresh-1", "s2")
    assert plan.status.phase == "Standby"


def test_a_point_that_its_node_does_not_list_yet_waits() -> None:
    facts = finish(seed(1), is_listed=False)
    plan = plan_replica(facts, NOW)
    assert (plan.arrived, plan.status.order) == (None, facts.status.order)


def test_the_newest_are_kept_and_the_others_go() -> None:
    plan = plan_replica(finish(seed(1, 2, 3)), NOW)
    assert (plan.drop, [one.number for one in plan.status.points]) == (["p1"], [2, 3, 4])


def test_a_point_whose_snapshot_people_deleted_is_no_parent() -> None:
    facts = msgspec.structs.replace(seed(1, 2), snapshots=frozenset({"p1"}))
    order = plan_replica(facts, NOW).status.order
    assert order is not None and (order.parent, order.parent_source, order.snapshot) == ("p1", "s1", "fresh-1")


def test_a_node_that_is_gone_is_replaced_and_all_is_sent_again() -> None:
    facts = msgspec.structs.replace(seed(1, 2), places=(N2,), node_exists=False, fresh_uid="fresh-9")
    plan = plan_replica(facts, NOW)
    order = plan.status.order
    assert order is not None
    assert (plan.status.node, order.node_uid, order.parent, order.parent_source) == ("n2", "node-2", "", "")
    assert (order.number, order.snapshot) == (3, "fresh-9")


def test_a_node_that_is_not_ready_is_waited_for_a_while() -> None:
    facts = msgspec.structs.replace(seed(1, 2), places=(N2,))
    plan = plan_replica(facts, NOW)
    assert (plan.status.phase, plan.status.node, plan.status.lost_at) == ("NodeLost", "n1", NOW)
    later = msgspec.structs.replace(facts, status=plan.status)
    assert plan_replica(later, NOW + RESEED_SECONDS - 1).status.node == "n1"
    autonomous = msgspec.structs.replace(later, is_autonomous=True)
    assert plan_replica(autonomous, NOW + RESEED_SECONDS).status.node == "n1"
    assert plan_replica(later, NOW + RESEED_SECONDS).status.node == "n2"
    back = plan_replica(msgspec.structs.replace(later, places=(N1, N2)), NOW + 5).status
    assert (back.phase, back.lost_at, back.reason) == ("Standby", None, "")


def test_one_that_was_promoted_has_an_order_of_the_next_generation_so_that_its_source_hears_of_it() -> None:
    facts = seed(1)
    marks = ReplicaMarks(role="primary", generation=2)
    status = plan_replica(msgspec.structs.replace(facts, marks=marks), NOW).status
    assert status.order is not None and (status.phase, status.order.generation) == ("Promoted", 2)
    gone = msgspec.structs.replace(facts, marks=marks, places=(N2,), node_exists=False)
    assert plan_replica(gone, NOW).status.node == "n1"


def test_disks_that_grew_change_the_order_and_not_the_snapshot_that_it_is_for() -> None:
    facts = seed(1)
    spec = msgspec.structs.replace(facts.spec, disks={"root": 600})
    order, former = plan_replica(msgspec.structs.replace(facts, spec=spec), NOW).status.order, facts.status.order
    assert order is not None and former is not None
    assert (order.disks, order.snapshot) == ({"root": 600}, former.snapshot)


def test_one_that_is_deleted_goes_once_its_points_are_gone() -> None:
    facts = msgspec.structs.replace(seed(1, 2), deleting=True, held=True)
    plan = plan_replica(facts, NOW)
    assert (plan.drop, plan.status.order, plan.release) == (["p1", "p2"], None, False)
    assert plan_replica(msgspec.structs.replace(facts, held=False), NOW).release


COMMON = Point(number=7, snapshot="web-s7", snapshot_uid="s7", source="s7")
RETURNED = Returned("web", "vm-uid", "out", True, frozenset({"root", "v1"}), COMMON, "n2", "node-2")
KEYS = {"s7": frozenset({"root", "v1"})}


def test_one_that_continues_a_vm_begins_with_the_point_that_both_sides_have() -> None:
    facts = make_facts(returned=RETURNED, keys=KEYS)
    status = plan_replica(facts, NOW).status
    order = status.order
    assert order is not None
    assert (order.node_uid, order.parent, order.parent_source, order.number) == ("node-2", "s7", "s7", 8)
    assert (status.vm, status.vm_uid, status.points) == ("web", "vm-uid", [COMMON])
    again = msgspec.structs.replace(facts, status=status, snapshots=frozenset({"s7"}), node_exists=True)
    assert plan_replica(again, NOW).status == status


def test_a_point_without_the_vm_s_own_disks_makes_another_vm() -> None:
    facts = make_facts(returned=RETURNED, keys=KEYS)
    begun = msgspec.structs.replace(
        facts, status=plan_replica(facts, NOW).status, snapshots=frozenset({"s7"}), node_exists=True
    )
    for key, vm in (("v1", "web"), ("of-the-other-side", "")):
        done = finish(begun)
        disks = {"root": ReceivedDisk("root", 300), "data": ReceivedDisk(key, 100)}
        assert done.report is not None
        report = msgspec.structs.replace(done.report, disks=disks)
        assert plan_replica(msgspec.structs.replace(done, report=report), NOW).status.vm == vm


def test_one_that_continues_a_vm_takes_nothing_while_that_may_still_write() -> None:
    writes = msgspec.structs.replace(RETURNED, is_fenced=False)
    status = plan_replica(make_facts(returned=writes), NOW).status
    assert (status.order, status.reason) == (None, "stillWrites")
    gone = msgspec.structs.replace(RETURNED, point=None)
    order = plan_replica(make_facts(returned=gone), NOW).status.order
    assert order is not None and order.parent == ""


def test_a_promotion_starts_the_vm_that_it_continues_once_its_disks_have_gone_back() -> None:
    facts = seed(7, 8)
    facts = msgspec.structs.replace(facts, marks=ReplicaMarks(role="primary", promoted=8))

    def plan(**changes: Any) -> tuple[Point | None, bool, str, str]:
        returned = msgspec.structs.replace(RETURNED, **changes)
        made = plan_replica(msgspec.structs.replace(facts, returned=returned), NOW)
        return made.go_back, made.start, made.status.phase, made.status.reason

    assert plan() == (make_point(8), False, "Standby", "")
    assert plan(asked="web-7", has_gone=True) == (make_point(8), False, "Standby", "")
    assert plan(asked="web-8") == (None, False, "Standby", "")
    assert plan(asked="web-8", trouble="gone") == (None, False, "Standby", "restoreFailed")
    assert plan(asked="web-8", has_gone=True) == (None, True, "Standby", "")
    assert plan(is_fenced=False) == (None, False, "Promoted", "")


def test_a_second_copy_leaves_the_node_that_its_vm_has_come_to_and_waits_in_words_if_there_is_no_other() -> None:
    copy = msgspec.structs.replace(seed(1, 2), is_local=True, avoided="n1", places=())
    status = plan_replica(copy, NOW).status
    assert (status.order, status.reason, status.node) == (None, "sameNode", "n1")
    assert status.message == (
        "the VM has come to node n1, which has its points; no other ready node has storage pool local"
    )
    status = plan_replica(msgspec.structs.replace(copy, places=(N2,)), NOW).status
    assert status.order is not None
    assert (status.node, status.order.node_uid, status.order.parent, status.order.number) == ("n2", "node-2", "", 3)


def test_points_from_before_the_vm_went_on_go_and_no_later_point_stands_on_them() -> None:
    copy = msgspec.structs.replace(seed(1, 2), is_local=True, marks=ReplicaMarks(generation=2))
    plan = plan_replica(msgspec.structs.replace(copy, pinned=frozenset({"p2"})), NOW)
    assert plan.drop == ["p1"] and [one.number for one in plan.status.points] == [2]
    assert plan.status.order is not None
    assert (plan.status.order.generation, plan.status.order.parent, plan.status.order.number) == (2, "", 3)
