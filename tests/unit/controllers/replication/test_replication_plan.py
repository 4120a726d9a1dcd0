"""What a replication does next: snapshots at the right times, sent once each; the age of the newest point is never understated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.replication.controller import list_events
from weft.controllers.replication.plan import (
    MOST_RETRY_SECONDS,
    ReplicationFacts,
    ReplicationPlan,
    Taken,
    note_age,
    plan_replication,
)
from weft.informer.view import Item
from weft.kinds.fields.replication.work import SendReport
from weft.kinds.replication import REPLICATION, ReplicationActions, ReplicationSpec, ReplicationStatus, SentPoint
from weft.kinds.snapshot import SnapshotDisk, SnapshotStatus

NOW = 10_000.0
POINT = SentPoint(snapshot="web-a", snapshot_uid="a", begun_at=NOW - 5, number=4)
NEXT = SentPoint(snapshot="web-b", snapshot_uid="b", begun_at=NOW - 2)


def take(uid: str, phase: str = "Ready", **changes: Any) -> Taken:
    status = SnapshotStatus(
        phase=phase,
        node="n1",
        node_uid="node-1",
        disks={"root": SnapshotDisk(key="root", size=100), "data": SnapshotDisk(key="v1", size=50)},
        taken_at=5.0,
        workload_spec={"image": "tiny"},
        image_sha256="i",
        consistency="crash",
    )
    return Taken(f"web-{uid}", uid, False, msgspec.structs.replace(status, **changes))


def make_facts(status: ReplicationStatus | None = None, **changes: Any) -> ReplicationFacts:
    facts = ReplicationFacts(
        name="web",
        uid="r",
        deleting=False,
        spec=ReplicationSpec(of="vm/web", cluster="west", rpo=60.0),
        status=status or ReplicationStatus(workload_uid="w"),
        project="lab",
        subject="w",
        cluster="Linked",
        node_ready=True,
    )
    return msgspec.structs.replace(facts, **changes)


def steady(**changes: Any) -> ReplicationStatus:
    return ReplicationStatus(workload_uid="w", point=POINT, **changes)


def order_next() -> ReplicationFacts:
    """One whose point is on its way."""
    facts = make_facts(steady(next=NEXT), point=take("a"), next=take("b"))
    plan = plan_replication(facts, NOW)
    assert plan.status.order is not None
    return msgspec.structs.replace(facts, status=plan.status)


def test_nothing_is_sent_for_a_project_that_the_link_is_not_for() -> None:
    """Neither what was under way when an administrator took it from the link, nor a question."""
    facts = msgspec.structs.replace(order_next(), project="", own_project="shop")
    plan = plan_replication(facts, NOW)
    assert (plan.status.order, plan.status.ask, plan.status.next, list(plan.drop)) == (None, None, None, ["b"])
    assert (plan.status.phase, plan.status.reason) == ("Pending", "projectNotLinked")
    assert "not for project shop" in plan.status.message
    rests = make_facts(steady(phase="HandedOver"), project="", own_project="shop", fenced="web", point=take("a"))
    plan = plan_replication(rests, NOW)
    assert (plan.status.phase, plan.status.ask, plan.fence) == ("HandedOver", None, None)


def test_a_vm_that_has_not_run_yet_gets_its_first_point_once_it_has() -> None:
    """A snapshot of it would wait for a disk, and nothing would say so."""
    plan = plan_replication(make_facts(never_ran=True), NOW)
    assert not plan.begin and (plan.status.phase, plan.status.reason) == ("Pending", "neverRan")
    assert "vm/web has not run yet" in plan.status.message
    begun = plan_replication(make_facts(ReplicationStatus(workload_uid="w", next=NEXT), next=take("b", "Pending")), NOW)
    waits = plan_replication(
        make_facts(begun.status, next=take("b", "Pending"), never_ran=True), NOW
    )  # of a release that took one all the same
    assert (waits.status.next, list(waits.drop), waits.status.reason) == (None, ["b"], "neverRan")
    runs = plan_replication(make_facts(plan.status), NOW)
    assert runs.begin and (runs.status.phase, runs.status.reason, runs.status.message) == ("Seeding", "", "")


def test_an_order_follows_the_projects_of_the_link() -> None:
    facts = msgspec.structs.replace(order_next(), own_project="shop")
    first = plan_replication(facts, NOW).status
    assert first.order is not None and (first.order.own_project, first.order.project) == ("shop", "lab")
    again = plan_replication(msgspec.structs.replace(facts, status=first, project="mall"), NOW).status
    assert again.order is not None and again.order.project == "mall" and again.order.attempt == first.attempt + 1
    assert plan_replication(msgspec.structs.replace(facts, status=first), NOW).status.order == first.order


def test_a_vm_that_migrated_to_another_cluster_is_replicated_from_there_not_from_what_is_left_here() -> None:
    facts = msgspec.structs.replace(order_next(), departed="west/default/web")
    plan = plan_replication(facts, NOW)
    assert (plan.status.phase, plan.status.reason, plan.status.order) == ("Failed", "departed", None)
    assert "migrated to west/default/web" in plan.status.message and plan.drop and plan.fence is None
    assert plan.status.point == POINT  # what is at the other cluster stays until people delete it


def test_a_new_one_begins_at_once() -> None:
    plan = plan_replication(make_facts(ReplicationStatus()), NOW)
    assert (plan.begin, plan.status.phase, plan.status.workload_uid) == (True, "Seeding", "w")


@pytest.mark.parametrize(("age", "begins"), [(19.0, False), (20.0, True), (500.0, True)])
def test_the_next_point_begins_once_the_newest_is_a_third_of_the_rpo_old(age: float, begins: bool) -> None:
    point = msgspec.structs.replace(POINT, begun_at=NOW - age)
    plan = plan_replication(make_facts(ReplicationStatus(workload_uid="w", point=point), point=take("a")), NOW)
    assert plan.begin is begins
    assert plan.status.lag_seconds == age


def test_a_clock_that_was_set_back_stops_nothing_for_longer_than_the_rpo() -> None:
    plan = plan_replication(make_facts(steady(retry_at=NOW + 90_000), point=take("a")), NOW - 80_000)
    assert not plan.begin and 0 < plan.later <= 60.0
    assert plan.status.lag_seconds == 0.0


def test_the_lag_that_is_shown_is_a_twelfth_of_the_rpo_old_at_most() -> None:
    point, now, written = msgspec.structs.replace(POINT, begun_at=NOW - 1.0), NOW, []
    facts = make_facts(ReplicationStatus(workload_uid="w", point=point), point=take("a"))
    while now < NOW + 18:
        plan = plan_replication(facts, now)
        facts, age = msgspec.structs.replace(facts, status=plan.status), now - (plan.status.updated_at or 0.0)
        assert 0 < plan.later <= max(0.1, 5.0 - age)
        written.append(plan.status.lag_seconds)
        now += plan.later - 0.001  # a timer may be early
    assert written[-1] is not None and written[-1] > 15.0 and len(written) < 20


def test_the_order_names_what_changed_since_the_newest_point_and_how_the_replica_should_be() -> None:
    order = order_next().status.order
    assert order is not None
    assert (order.snapshot, order.since, order.node_uid, order.age_seconds) == ("b", "a", "node-1", 2.0)
    assert order.disks == {"root": "root", "data": "v1"}
    assert order.manifest["disks"] == {"root": 100, "data": 50}
    assert (order.project, order.replica, order.manifest["origin"]) == ("lab", "web", "r")


def test_a_point_that_is_there_takes_the_place_of_the_one_before_whose_snapshot_goes() -> None:
    facts = order_next()
    report = SendReport(uid="r", attempt=1, phase="done", number=5, bytes=1000, seconds=1.0)
    plan = plan_replication(msgspec.structs.replace(facts, report=report), NOW)
    status = plan.status
    assert status.point is not None and (status.point.snapshot_uid, status.point.number) == ("b", 5)
    assert (status.next, status.order, plan.drop) == (None, None, ["a"])
    assert (status.lag_seconds, status.rpo_seconds, status.phase) == (2.0, 5.0, "Replicating")


def test_a_failure_takes_a_new_snapshot_after_a_pause_that_grows_and_keeps_the_newest_point() -> None:
    facts, pauses, late = order_next(), [], NOW + 60  # its newest point is older than its RPO
    for _ in range(8):
        report = SendReport(uid="r", attempt=1, phase="failed", reason="streamLost", message="cut")
        plan = plan_replication(msgspec.structs.replace(facts, report=report), late)
        assert (plan.drop, plan.status.next, plan.status.point) == (["b"], None, POINT)
        assert (plan.status.phase, plan.status.reason) == ("Interrupted", "streamLost")
        pauses.append(plan.status.retry_at - late)
        facts = msgspec.structs.replace(
            facts, status=msgspec.structs.replace(facts.status, failures=plan.status.failures)
        )
    assert pauses == sorted(pauses) and pauses[0] < pauses[-1] == MOST_RETRY_SECONDS
    assert not plan_replication(make_facts(plan.status, point=take("a")), late + 1).begin
    assert plan_replication(make_facts(plan.status, point=take("a")), late + 60).begin


@pytest.mark.parametrize(("failures", "reason"), [(0, "nameTaken"), (9, "nameTaken"), (0, "forbidden")])
def test_what_the_other_cluster_refused_is_tried_again_within_half_a_minute(failures: int, reason: str) -> None:
    facts = order_next()
    tried = msgspec.structs.replace(facts.status, failures=failures)
    report = SendReport(uid="r", attempt=1, phase="failed", reason=reason, message="no")
    plan = plan_replication(msgspec.structs.replace(facts, status=tried, report=report), NOW)
    assert plan.status.retry_at == NOW + MOST_RETRY_SECONDS == NOW + 30


@pytest.mark.parametrize("rpo", [10.0, 60.0])
def test_pauses_are_short_while_the_newest_point_is_younger_than_the_rpo(rpo: float) -> None:
    facts = order_next()
    facts = msgspec.structs.replace(facts, spec=msgspec.structs.replace(facts.spec, rpo=rpo))
    report = SendReport(uid="r", attempt=1, phase="failed", reason="streamLost", message="cut")
    now, failures, pauses = POINT.begun_at + rpo / 3, 0, list[float]()
    while now < POINT.begun_at + rpo:
        tried = msgspec.structs.replace(facts.status, failures=failures)
        plan = plan_replication(msgspec.structs.replace(facts, status=tried, report=report), now)
        pauses.append(plan.status.retry_at - now)
        now, failures = plan.status.retry_at, plan.status.failures
    assert max(pauses) <= rpo / 12 + 0.01 and len(pauses) >= 8 and pauses[0] == pytest.approx(min(rpo / 12, 2.0))
    tried = msgspec.structs.replace(facts.status, failures=failures)
    plan = plan_replication(msgspec.structs.replace(facts, status=tried, report=report), now)
    assert plan.status.retry_at - now == MOST_RETRY_SECONDS


def test_one_whose_replica_was_promoted_stops_its_vm_for_good_and_tries_no_more() -> None:
    report = SendReport(uid="r", attempt=1, phase="failed", reason="staleGeneration", message="promoted")
    facts = msgspec.structs.replace(order_next(), report=report)
    plan = plan_replication(facts, NOW)
    assert plan.status.phase == "Stale"
    left = msgspec.structs.replace(facts, status=plan.status, report=None, next=None)
    plan = plan_replication(left, NOW + 9999)
    assert (plan.fence, plan.begin, plan.status.phase, plan.status.point) == (True, False, "Stale", POINT)
    settled = plan_replication(msgspec.structs.replace(left, fenced="web"), NOW + 9999)
    assert (settled.fence, settled.begin, settled.status) == (None, False, plan.status)


HANDED = ReplicationActions(handover=True)
SPEC = ReplicationSpec(of="vm/web", cluster="west", rpo=60.0)


def test_a_vm_that_is_handed_over_stops_before_its_last_point_is_taken() -> None:
    facts = make_facts(steady(next=NEXT), actions=HANDED, point=take("a"), next=take("b"))
    plan = plan_replication(facts, NOW)
    assert (plan.fence, plan.drop, plan.status.phase) == (True, (), "HandingOver")
    facts = msgspec.structs.replace(facts, status=plan.status, fenced="web")
    plan = plan_replication(facts, NOW)
    assert (plan.drop, plan.status.next, plan.begin) == (["b"], None, False)  # it was taken while the VM ran
    facts = msgspec.structs.replace(facts, status=plan.status, next=None)
    plan = plan_replication(facts, NOW)
    assert (plan.begin, plan.status.reason) == (False, "stopping")
    plan = plan_replication(msgspec.structs.replace(facts, status=plan.status, is_stopped=True), NOW)
    assert (plan.begin, plan.final, plan.status.told_final) == (True, True, True)
    last = SentPoint(snapshot="web-c", snapshot_uid="c", begun_at=NOW, final=True)
    sent = msgspec.structs.replace(
        facts, status=msgspec.structs.replace(plan.status, next=last), next=take("c"), is_stopped=True
    )
    plan = plan_replication(sent, NOW)
    assert plan.status.order is not None and plan.status.order.final
    report = SendReport(uid="r", attempt=1, phase="done", number=6)
    plan = plan_replication(msgspec.structs.replace(sent, status=plan.status, report=report), NOW)
    plan = plan_replication(
        msgspec.structs.replace(sent, status=plan.status, point=take("c"), next=None, report=None), NOW + 999
    )
    assert (plan.status.phase, plan.begin, plan.fence) == ("HandedOver", False, None)
    assert "weft replica promote web" in plan.status.message


def test_a_vm_is_not_stopped_while_its_last_point_could_not_be_sent() -> None:
    for changes in ({"cluster": "Unreachable"}, {"status": steady(failures=1, reason="streamLost", retry_at=NOW + 9)}):
        plan = plan_replication(
            make_facts(**{"status": steady(), "actions": HANDED, "point": take("a"), **changes}), NOW
        )
        assert plan.fence is None and plan.status.phase != "HandingOver"


def test_one_that_is_taken_back_may_start_once_the_replica_knows_that_more_will_come() -> None:
    last = msgspec.structs.replace(POINT, final=True)
    status = ReplicationStatus(workload_uid="w", point=last, told_final=True)
    facts = make_facts(status, point=take("a"), fenced="web", is_stopped=True)
    plan = plan_replication(facts, NOW)
    assert (plan.begin, plan.final, plan.fence) == (True, False, None)
    told = msgspec.structs.replace(facts, status=steady())
    assert plan_replication(told, NOW).fence is False


def test_one_that_is_deleted_lets_its_vm_start_before_it_goes_and_leaves_what_a_replica_stands_on() -> None:
    facts = make_facts(steady(), deleting=True, point=take("a"), fenced="web", held=frozenset({"a"}))
    plan = plan_replication(facts, NOW)
    assert (plan.fence, plan.drop, plan.release) == (False, [], False)
    assert plan_replication(msgspec.structs.replace(facts, fenced=""), NOW).release


def test_the_first_point_of_a_vm_that_came_from_there_is_what_changed_since() -> None:
    facts = make_facts(ReplicationStatus(workload_uid="w", next=NEXT), next=take("b"), returns="r-there", base="p4")
    order = plan_replication(facts, NOW).status.order
    assert order is not None and (order.since, order.manifest["returns"]) == ("p4", "r-there")


@pytest.mark.parametrize(
    ("taken", "reason"),
    [(None, "snapshotGone"), (take("b", "Failed", reason="noSpace", message="full"), "noSpace")],
)
def test_a_snapshot_that_fails_or_is_deleted_is_a_failure(taken: Taken | None, reason: str) -> None:
    plan = plan_replication(make_facts(steady(next=NEXT), point=take("a"), next=taken), NOW)
    assert (plan.status.reason, plan.status.phase, plan.status.point) == (reason, "Interrupted", POINT)


def test_a_vm_that_migrates_while_its_point_is_sent_has_it_sent_by_its_new_node() -> None:
    facts = order_next()
    moved = take("b", node_uid="node-2")
    plan = plan_replication(msgspec.structs.replace(facts, next=moved, node_ready=False), NOW)
    assert plan.status.order is None
    plan = plan_replication(msgspec.structs.replace(facts, next=moved, status=plan.status), NOW)
    order = plan.status.order
    assert order is not None and (order.node_uid, order.attempt) == ("node-2", 2)


def test_without_the_snapshot_of_the_newest_point_the_next_is_sent_whole() -> None:
    plan = plan_replication(make_facts(steady(), point=None), NOW)
    assert plan.status.point is not None and plan.status.point.number == 4
    status = msgspec.structs.replace(plan.status, next=NEXT)
    order = plan_replication(make_facts(status, next=take("b")), NOW).status.order
    assert order is not None and order.since == ""


@pytest.mark.parametrize("subject", ["", "another"])
def test_a_vm_that_is_gone_ends_it_and_leaves_the_replica(subject: str) -> None:
    plan = plan_replication(make_facts(steady(), subject=subject, point=take("a")), NOW)
    assert (plan.status.phase, plan.status.reason, plan.drop) == ("Failed", "vmGone", ["a"])
    assert "its replica is still at west" in plan.status.message
    assert not plan_replication(make_facts(plan.status, subject=subject), NOW).begin


def test_one_that_is_deleted_goes_once_its_snapshots_are_gone() -> None:
    plan = plan_replication(make_facts(steady(next=NEXT), deleting=True, point=take("a"), next=take("b")), NOW)
    assert (plan.drop, plan.release) == (["a", "b"], False)
    assert plan_replication(make_facts(steady(), deleting=True), NOW).release


def test_a_newest_point_near_the_rpo_is_behind() -> None:
    old = msgspec.structs.replace(POINT, begun_at=NOW - 49)
    status = ReplicationStatus(workload_uid="w", point=old, next=NEXT)
    plan = plan_replication(make_facts(status, point=take("a"), next=take("b", "Taking")), NOW)
    assert (plan.status.phase, plan.status.lag_seconds, plan.status.rpo_seconds) == ("Behind", 49.0, 49.0)


def test_a_link_that_can_not_carry_what_is_written_is_said_to_be_too_slow() -> None:
    facts = order_next()
    begun = msgspec.structs.replace(NEXT, begun_at=NOW - 45)
    slow = msgspec.structs.replace(facts, status=msgspec.structs.replace(facts.status, next=begun))
    report = SendReport(uid="r", attempt=1, phase="done", number=5, bytes=80 << 20, seconds=40.0)
    plan = plan_replication(msgspec.structs.replace(slow, report=report), NOW)
    assert plan.status.reason == "rpoUnreachable" and "2 MiB/s" in plan.status.message
    quick = plan_replication(
        msgspec.structs.replace(slow, report=msgspec.structs.replace(report, bytes=30 << 10, seconds=0.1)), NOW
    ).status
    assert quick.reason == "rpoUnreachable" and "less than 1s of that" in quick.message and "/s" not in quick.message
    whole = msgspec.structs.replace(report, is_whole=True)
    assert plan_replication(msgspec.structs.replace(slow, report=whole), NOW).status.reason == ""


def test_the_worst_age_is_that_of_the_last_hour() -> None:
    status = ReplicationStatus()
    for minute in range(0, 130, 2):
        status = note_age(status, 50.0 if minute == 10 else 20.0, NOW + 60 * minute)
        if not 70 < minute < 76:
            assert status.rpo_seconds == (50.0 if 10 <= minute <= 70 else 20.0), minute
    assert len(status.rpo_history) <= 14


def test_a_plan_of_a_plan_changes_nothing_more() -> None:
    def settle(plan: ReplicationPlan, facts: ReplicationFacts) -> ReplicationStatus:
        return plan_replication(msgspec.structs.replace(facts, status=plan.status), NOW).status

    for facts in (
        make_facts(steady(), point=take("a")),
        make_facts(steady(next=NEXT), point=take("a"), next=take("b", "Taking")),
        order_next(),
    ):
        plan = plan_replication(facts, NOW)
        assert settle(plan, facts) == plan.status


@pytest.mark.parametrize(
    ("status", "spec", "phase"),
    [
        (steady(), ReplicationSpec(of="vm/web", cluster="west", paused=True), "Paused"),
        (steady(), ReplicationSpec(of="vm/web", cluster="west", rpo=3600.0), "Replicating"),
        (
            ReplicationStatus(workload_uid="w", point=msgspec.structs.replace(POINT, final=True), told_final=True),
            SPEC,
            "HandedOver",
        ),
    ],
)
def test_a_replica_that_gets_no_point_for_a_while_is_asked_after_so_that_a_promotion_is_heard_of(
    status: ReplicationStatus, spec: ReplicationSpec, phase: str
) -> None:
    fenced = "web" if phase == "HandedOver" else ""
    asked = ReplicationActions(handover=bool(fenced))
    facts = make_facts(status, spec=spec, actions=asked, point=take("a"), fenced=fenced, is_stopped=bool(fenced))
    plan = plan_replication(facts, NOW)
    ask = plan.status.ask
    assert plan.status.phase == phase and plan.status.order is None and ask is not None
    assert (ask.uid, ask.node_uid, ask.cluster, ask.project) == ("r", "node-1", "west", "lab")
    assert (ask.replica, ask.attempt) == ("web", 1)
    facts = msgspec.structs.replace(facts, status=plan.status)
    assert plan_replication(facts, NOW).status == plan.status
    report = SendReport(uid="r", attempt=1, phase="failed", reason="staleGeneration", message="promoted")
    found = plan_replication(msgspec.structs.replace(facts, heard=report), NOW)
    assert (found.status.phase, found.status.ask, found.status.point) == ("Stale", None, status.point)
    stopped = plan_replication(msgspec.structs.replace(facts, status=found.status, heard=None), NOW)
    assert (stopped.fence, stopped.status.phase) == (None if fenced else True, "Stale")


def test_a_question_gives_way_to_the_next_point() -> None:
    facts = make_facts(
        steady(), spec=ReplicationSpec(of="vm/web", cluster="west", rpo=3600.0), point=take("a"), next=take("b")
    )
    asked = plan_replication(facts, NOW).status
    assert asked.order is None and asked.ask is not None
    plan = plan_replication(msgspec.structs.replace(facts, status=msgspec.structs.replace(asked, next=NEXT)), NOW)
    assert plan.status.order is not None and plan.status.ask is None
    assert (plan.status.order.snapshot, plan.status.order.attempt, plan.status.order.has_points) == ("b", 2, True)


def test_a_replica_that_is_gone_after_a_hand_over_leaves_the_vm_stopped_and_is_asked_after_again() -> None:
    status = ReplicationStatus(workload_uid="w", point=msgspec.structs.replace(POINT, final=True), told_final=True)
    facts = make_facts(status, actions=HANDED, point=take("a"), fenced="web", is_stopped=True)
    facts = msgspec.structs.replace(facts, status=plan_replication(facts, NOW).status)
    report = SendReport(uid="r", attempt=1, phase="failed", reason="replicaGone", message="gone; delete it")
    found = plan_replication(msgspec.structs.replace(facts, heard=report), NOW).status
    plan = plan_replication(msgspec.structs.replace(facts, status=found), NOW)
    assert (plan.fence, plan.status.reason, plan.status.message, plan.status.ask) == (
        *(None, "replicaGone", "gone; delete it"),
        None,
    )
    later = plan_replication(msgspec.structs.replace(facts, status=plan.status), NOW + plan.later).status
    assert later.ask is not None and later.ask.attempt == 2


@pytest.mark.parametrize(
    ("spec", "point", "phase"),
    [
        (ReplicationSpec(of="vm/web", cluster="west", paused=True), POINT, "Paused"),
        (SPEC, msgspec.structs.replace(POINT, final=True), "HandedOver"),
    ],
)
def test_one_at_rest_whose_replica_was_deleted_rests_says_why_and_tells_it_once(
    spec: ReplicationSpec, point: SentPoint, phase: str
) -> None:
    item = Item(REPLICATION.make("web", spec, 1.0, uid="r", project="default"))
    status = ReplicationStatus(workload_uid="w", point=point, told_final=point.final, phase=phase)
    asked, fenced = ReplicationActions(handover=point.final), "web" if point.final else ""
    facts = make_facts(status, spec=spec, actions=asked, point=take("a"), fenced=fenced, is_stopped=point.final)
    now, seen, told = NOW, set[tuple[str, str]](), list[str]()
    for _ in range(40):
        plan = plan_replication(facts, now)
        told += [event.message for event in list_events(item, facts, plan)]
        seen.add((plan.status.phase, plan.status.reason))
        ask, now = plan.status.ask, now + 60.0
        gone = SendReport(uid="r", attempt=0, phase="failed", reason="replicaGone", message="it is gone")
        facts = msgspec.structs.replace(facts, status=plan.status, heard=gone if ask is not None else None)
    assert (seen, told) == ({(phase, ""), (phase, "replicaGone")}, ["it is gone"])
    assert facts.status.attempt >= 6 and facts.status.message == "it is gone"  # it is asked after again and again


def test_a_vm_that_is_taken_back_may_start_only_by_a_point_that_a_standby_shows() -> None:
    last = msgspec.structs.replace(POINT, final=True)
    status = ReplicationStatus(workload_uid="w", point=last, told_final=True, next=NEXT)
    order = plan_replication(make_facts(status, point=take("a"), next=take("b"), fenced="web"), NOW).status.order
    assert order is not None and (order.confirms, order.final) == (True, False)
    usual = order_next().status.order
    assert usual is not None and not usual.confirms


@pytest.mark.parametrize("changes", [{"spec": msgspec.structs.replace(SPEC, paused=True)}, {"actions": HANDED}, {}])
def test_a_point_that_has_come_counts_also_if_no_more_are_wanted(changes: dict[str, Any]) -> None:
    """Else the next one would be sent whole, and nobody would ask after a replica that was seeded just now."""
    report = SendReport(uid="r", attempt=1, phase="done", number=5, bytes=9, seconds=1.0)
    fenced = "web" if "actions" in changes else ""
    facts = msgspec.structs.replace(order_next(), report=report, fenced=fenced, **changes)
    plan = plan_replication(facts if changes else msgspec.structs.replace(facts, cluster=None), NOW)
    assert plan.status.point is not None and (plan.status.point.number, plan.drop) == (5, ["a"])
    assert (plan.status.next, plan.status.phase) == (None, "HandingOver" if "actions" in changes else "Replicating")


def test_a_vm_whose_copy_was_promoted_is_left_also_if_only_the_witness_says_so() -> None:
    plan = plan_replication(make_facts(steady(), cluster="Unreachable", is_superseded=True), NOW)
    assert (plan.status.phase, plan.status.reason, plan.fence) == ("Stale", "staleGeneration", True)
    assert "the witness says" in plan.status.message
    over = plan_replication(make_facts(plan.status, cluster="Unreachable", fenced="web", is_superseded=True), NOW)
    assert over.status == plan.status and over.fence is None
    linked = plan_replication(make_facts(steady(), is_superseded=True), NOW)  # the replica itself is asked
    assert linked.fence is None and linked.status.phase != "Stale"


def test_a_vm_that_is_guarded_is_left_and_its_replication_gone_only_once_its_nodes_let_go() -> None:
    facts = make_facts(steady(), point=take("a"), guard="release")
    handing = plan_replication(msgspec.structs.replace(facts, actions=HANDED), NOW)
    assert (handing.status.phase, handing.status.reason, handing.fence) == ("HandingOver", "guarded", None)
    paused = plan_replication(msgspec.structs.replace(facts, spec=msgspec.structs.replace(SPEC, paused=True)), NOW)
    assert (paused.status.phase, paused.status.reason) == ("Paused", "guarded")
    going = plan_replication(msgspec.structs.replace(facts, deleting=True), NOW)
    assert (going.status.phase, going.release, going.drop, going.fence) == ("Deleting", False, (), None)
    assert "waits for west" in going.status.message
    alone = ReplicationActions(alone=True)
    stays = plan_replication(msgspec.structs.replace(facts, deleting=True, guard="", actions=alone), NOW)
    assert (stays.status.phase, stays.release, stays.drop) == ("Deleting", False, ())
    assert "its copy at west may take over" in stays.status.message and "witness west --off" in stays.status.message
    left = plan_replication(msgspec.structs.replace(facts, deleting=True, is_left=True), NOW)
    assert (left.release, left.fence) == (False, True)


def test_what_the_other_cluster_said_of_a_promotion_counts_over_a_line_that_works() -> None:
    plan = plan_replication(make_facts(steady(), point=take("a"), is_left=True), NOW)
    assert (plan.status.phase, plan.status.reason, plan.fence) == ("Stale", "staleGeneration", True)
    assert "the other cluster says" in plan.status.message


def test_an_older_cluster_is_not_told_of_the_guard() -> None:
    taken = take("b", workload_spec={"image": "tiny", "guard": "hold"})
    plan = plan_replication(make_facts(steady(next=NEXT), point=take("a"), next=taken), NOW)
    assert plan.status.order is not None and plan.status.order.manifest["workload"] == {"image": "tiny"}


def test_one_that_is_taken_back_replicates_only_once_the_replica_has_confirmed_it() -> None:
    waits = plan_replication(
        make_facts(steady(told_final=True), point=take("a"), next=take("b", "Creating"), fenced="w"), NOW
    )
    assert waits.status.phase == "TakingBack"
    done = plan_replication(make_facts(steady(told_final=False), point=take("a"), fenced="w"), NOW)
    assert (done.status.phase, done.fence) == ("Replicating", False)


def test_nothing_is_tried_while_the_other_cluster_refuses_this_one_and_the_next_point_comes_once_that_is_over() -> None:
    failed = steady(failures=3, reason="forbidden", retry_at=NOW + 280)
    refused = plan_replication(make_facts(failed, point=take("a"), cluster="Refused"), NOW)
    assert not refused.begin and (refused.status.phase, refused.status.reason) == ("Interrupted", "linkRefused")
    assert "weft cluster describe west" in refused.status.message
    assert plan_replication(make_facts(refused.status, point=take("a")), NOW + 60).begin


def test_within_this_cluster_nothing_is_asked_nor_begun_before_a_node_is_chosen() -> None:
    local = make_facts(
        spec=ReplicationSpec(of="vm/web", cluster="", rpo=60.0), generation=1, waits="no other ready node"
    )
    plan = plan_replication(local, NOW)
    assert (plan.begin, plan.status.phase, plan.status.reason) == (False, "Pending", "noPlace")
    assert plan.status.message == "no other ready node"
    plan = plan_replication(msgspec.structs.replace(local, status=plan.status, waits=""), NOW)
    assert plan.begin and (plan.status.phase, plan.status.reason, plan.status.message) == ("Seeding", "", "")
    rests = msgspec.structs.replace(local, status=steady(), point=take("a"), waits="", spec=ReplicationSpec(
        of="vm/web", cluster="", rpo=600.0,
    ))  # fmt: skip
    assert plan_replication(rests, NOW).status.ask is None


def test_a_vm_that_went_on_from_its_second_copy_is_copied_again_from_the_beginning() -> None:
    facts = make_facts(steady(next=NEXT, phase="Replicating"), point=take("a"), next=take("b"), generation=2)
    plan = plan_replication(facts, NOW)
    assert (plan.status.point, plan.status.next, plan.status.order) == (None, None, None)
    assert sorted(plan.drop) == ["a", "b"] and plan.status.phase == "Pending" and plan.later > 0
    plan = plan_replication(msgspec.structs.replace(facts, status=plan.status, point=None, next=None), NOW)
    assert plan.begin
    new = msgspec.structs.replace(NEXT, generation=2)
    sent = make_facts(ReplicationStatus(workload_uid="w", next=new), next=take("b"), generation=2)
    order = plan_replication(sent, NOW).status.order
    assert order is not None and (order.generation, order.since) == (2, "")
