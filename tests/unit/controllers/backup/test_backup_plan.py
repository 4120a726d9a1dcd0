"""What a backup needs next: its snapshot, the copy, a verification, its removal; and who checks its repository."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.backup.model import BackupFacts, Earlier, Node, Repository, Snapshot
from weft.controllers.backup.plan import plan_backup
from weft.controllers.backup.repository import CHECK_SECONDS, RETRY_SECONDS, plan_repository
from weft.kinds.backup import BackupActions, BackupSpec, BackupStatus
from weft.kinds.backup_repository import BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.fields.backup_verification import BackupVerification
from weft.kinds.fields.backup_work import BackupAct, BackupOrder, BackupReport
from weft.kinds.snapshot import SnapshotDisk, SnapshotStatus

NOW = 1000.0
DISKS = {"root": SnapshotDisk(key="root", size=8), "data": SnapshotDisk(key="v1", size=9)}
SAFE = Repository(
    "safe", "r", BackupRepositorySpec(url="dir:///srv/safe"), BackupRepositoryStatus(phase="Ready", id="id")
)
EARLIER = Earlier("monday", "b0", "s0")


def make_order(act: BackupAct = "copy", node: str = "n1", generation: int = 0) -> BackupOrder:
    return BackupOrder(
        uid="b",
        act=act,
        node_uid=f"u-{node}",
        generation=generation,
        repository="safe",
        repository_uid="r",
        url="dir:///",
    )


def make_report(phase: Any, order: BackupOrder, **said: Any) -> BackupReport:
    return BackupReport(uid=order.uid, act=order.act, generation=order.generation, phase=phase, **said)


def make_node(name: str = "n1", report: BackupReport | None = None) -> Node:
    return Node(name, f"u-{name}", report)


def make_snapshot(phase: str = "Ready", node: str = "n1", deleting: bool = False, **status: Any) -> Snapshot:
    taken = SnapshotStatus(phase=phase, node=node, node_uid=f"u-{node}", taken_at=5.0, disks=DISKS, **status)
    return Snapshot("b-s", "s", deleting, taken)


def make_facts(phase: str, **known: Any) -> BackupFacts:
    status = msgspec.structs.replace(known.pop("status", BackupStatus()), phase=phase)
    spec = known.pop("spec", BackupSpec(of="vm/web", to="safe"))
    known = {"repository": SAFE, "subject": "w", "nodes": [make_node()], **known}
    return BackupFacts("default/tuesday", "b", known.pop("deleting", False), spec, status, 3.0, **known)


def copying(report: BackupReport | None = None, node: str = "n1", **known: Any) -> BackupFacts:
    """It is copied by ``node``, which says this."""
    asked = make_node(node, report)
    status = BackupStatus(order=make_order(node=node), disks=DISKS, base="monday", node=node)
    return make_facts(
        "Copying", **{"status": status, "asked": asked, "nodes": [asked], "snapshot": make_snapshot(), **known}
    )


def test_a_new_backup_has_a_snapshot_made() -> None:
    plan = plan_backup(make_facts("Pending", image="tiny"), NOW)
    assert (plan.status.phase, plan.status.workload_uid, plan.status.image) == ("Snapshotting", "w", "tiny")
    assert (plan.snapshot, plan.status.order) == ("make", None)


def test_one_of_nothing_fails() -> None:
    plan = plan_backup(make_facts("Pending", subject=""), NOW)
    assert (plan.status.phase, plan.status.reason, plan.snapshot) == ("Failed", "notFound", "")
    assert plan.status.message == "vm/web does not exist"


@pytest.mark.parametrize(
    ("known", "reason", "said"),
    [
        ({"repository": None}, "repositoryMissing", "there is no backuprepository/safe"),
        (
            {"repository": msgspec.structs.replace(SAFE, status=BackupRepositoryStatus(phase="Pending"))},
            "repositoryNotReady",
            "backuprepository/safe is not ready",
        ),
        (
            {
                "repository": msgspec.structs.replace(
                    SAFE, status=BackupRepositoryStatus(phase="Failed", message="it is full")
                )
            },
            "repositoryFailed",
            "backuprepository/safe is failed: it is full",
        ),
        ({"busy": "monday"}, "isBusy", "backup/monday of vm/web is being made first"),
    ],
)
def test_it_waits_and_says_for_what(known: dict[str, Any], reason: str, said: str) -> None:
    plan = plan_backup(make_facts("Pending", **known), NOW)
    assert (plan.status.phase, plan.snapshot) == ("Pending", "")
    assert (plan.status.reason, plan.status.message) == (reason, said)


def test_a_snapshot_that_is_being_taken_is_waited_for() -> None:
    plan = plan_backup(make_facts("Snapshotting", snapshot=make_snapshot("Taking", message="freezes")), NOW)
    assert (plan.status.phase, plan.status.message, plan.status.order) == ("Snapshotting", "freezes", None)


def test_a_snapshot_that_failed_fails_the_backup_and_goes() -> None:
    plan = plan_backup(make_facts("Snapshotting", snapshot=make_snapshot("Failed", reason="diskFull")), NOW)
    assert (plan.status.phase, plan.status.reason, plan.snapshot) == ("Failed", "diskFull", "drop")
    assert plan_backup(msgspec.structs.replace(copying(), status=plan.status), NOW).snapshot == "drop"


@pytest.mark.parametrize("phase", ["Snapshotting", "Copying"])
def test_a_snapshot_that_is_gone_fails_the_backup(phase: str) -> None:
    for snapshot, then in ((None, ""), (make_snapshot(deleting=True), "drop")):
        plan = plan_backup(make_facts(phase, snapshot=snapshot), NOW)
        assert (plan.status.phase, plan.status.reason, plan.snapshot) == ("Failed", "snapshotGone", then)


def test_a_ready_snapshot_is_copied_on_its_node_from_the_backup_before() -> None:
    snapshot = make_snapshot(node="n2", consistency="filesystem", workload_spec={"cpu": 2}, image_sha256="aa")
    spec = BackupSpec(of="vm/web", to="safe", keep=60.0)
    facts = make_facts(
        "Snapshotting", snapshot=snapshot, earlier=EARLIER, nodes=[make_node(), make_node("n2")], spec=spec
    )
    status = plan_backup(facts, NOW).status
    order = status.order
    assert order is not None
    assert (status.phase, status.node, status.base, status.consistency) == ("Copying", "n2", "monday", "filesystem")
    assert (order.act, order.node_uid, order.uid, order.backup) == ("copy", "u-n2", "b", "b")
    assert (order.snapshot, order.base, order.base_snapshot) == ("s", "b0", "s0")
    assert (order.repository_uid, order.repository_id, order.url) == ("r", "id", "dir:///srv/safe")
    assert (order.disks, order.expires_at) == ({"root": "root", "data": "v1"}, 0.0)
    told = {name: order.manifest[name] for name in ("backup", "of", "workload_spec", "image_sha256", "taken_at")}
    assert told == {
        "backup": "default/tuesday", "of": "vm/web", "workload_spec": {"cpu": 2}, "image_sha256": "aa", "taken_at": 5.0
    }  # fmt: skip


@pytest.mark.parametrize(("immutable", "keep", "until"), [(True, 60.0, 63.0), (True, 0.0, 0.0), (False, 60.0, 0.0)])
def test_only_an_immutable_repository_locks_and_only_for_a_time_that_is_set(
    immutable: bool, keep: float, until: float
) -> None:
    place = BackupRepositorySpec(url="s3://safe", immutable=immutable)
    known = {"repository": msgspec.structs.replace(SAFE, spec=place), "snapshot": make_snapshot()}
    spec = BackupSpec(of="vm/web", to="safe", keep=keep)
    order = plan_backup(make_facts("Snapshotting", spec=spec, **known), NOW).status.order
    assert order is not None and (order.immutable, order.expires_at) == (immutable, until)


def test_without_one_before_nothing_is_continued_and_nothing_locked() -> None:
    order = plan_backup(make_facts("Snapshotting", snapshot=make_snapshot()), NOW).status.order
    assert order is not None and (order.base, order.base_snapshot, order.expires_at) == ("", "", 0.0)


def test_the_order_waits_for_the_node_with_the_snapshot() -> None:
    plan = plan_backup(make_facts("Snapshotting", snapshot=make_snapshot(node="n9")), NOW)
    assert (plan.status.phase, plan.status.order, plan.status.reason) == ("Copying", None, "nodeNotReady")
    assert plan.status.message == "waits: node n9 is not ready"
    again = make_facts("Copying", status=plan.status, snapshot=make_snapshot(node="n9"), nodes=[make_node("n9")])
    order = plan_backup(again, NOW).status.order
    assert order is not None and order.node_uid == "u-n9"


def test_the_copy_tells_how_far_it_is() -> None:
    order = make_order()
    plan = plan_backup(copying(make_report("working", order, progress=0.4)), NOW)
    assert (plan.status.phase, plan.status.progress, plan.status.order) == ("Copying", 0.4, order)


def test_a_snapshot_that_went_to_another_node_is_copied_there() -> None:
    facts = copying(nodes=[make_node(), make_node("n2")], snapshot=make_snapshot(node="n2"))
    status = plan_backup(facts, NOW).status
    assert status.order is not None and (status.node, status.order.node_uid) == ("n2", "u-n2")


def test_the_order_of_a_node_that_is_gone_is_taken_back() -> None:
    gone = plan_backup(copying(asked=None, nodes=[]), NOW).status
    assert (gone.phase, gone.order, gone.reason) == ("Copying", None, "nodeNotReady")
    moved = copying(asked=None, nodes=[make_node("n2")], snapshot=make_snapshot(node="n2"))
    order = plan_backup(moved, NOW).status.order
    assert order is not None and order.node_uid == "u-n2"


def test_a_copy_that_is_done_makes_it_ready_and_lets_earlier_snapshots_go() -> None:
    said = {"bytes": 9, "stored_bytes": 5, "unique_bytes": 4, "repository_id": "id", "finished_at": 7.0}
    plan = plan_backup(copying(make_report("done", make_order(), **said)), NOW)
    status = plan.status
    assert (status.phase, status.state, status.progress, status.order) == ("Ready", "unproven", 1.0, None)
    assert {name: getattr(status, name) for name in said} == said
    assert (status.base, status.full_because) == ("monday", "")
    assert (plan.drop_earlier, plan.snapshot) == (True, "")


def test_a_done_copy_counts_although_its_snapshot_is_gone() -> None:
    assert plan_backup(copying(make_report("done", make_order()), snapshot=None), NOW).status.phase == "Ready"


def test_a_full_copy_has_no_base_and_says_why() -> None:
    status = plan_backup(copying(make_report("done", make_order(), full_because="it went")), NOW).status
    assert (status.base, status.full_because) == ("", "it went")


def test_a_copy_that_lacks_something_is_ready_and_says_what() -> None:
    report = make_report("done", make_order(), message="without the code of function/lost")
    status = plan_backup(copying(report), NOW).status
    assert (status.phase, status.reason, status.message) == ("Ready", "incomplete", "without the code of function/lost")


def test_a_copy_that_failed_says_why_and_keeps_earlier_snapshots() -> None:
    report = make_report("failed", make_order(), reason="repositoryFull", message="the repository is full")
    plan = plan_backup(copying(report), NOW)
    assert (plan.status.phase, plan.status.reason, plan.status.order) == ("Failed", "repositoryFull", None)
    assert (plan.status.message, plan.snapshot, plan.drop_earlier) == ("the repository is full", "drop", False)


def ready(asked: int, report: BackupReport | None = None, **known: Any) -> BackupFacts:
    """Verified once; verification ``asked`` is asked for now, and ordered of n1 if a report or order is given."""
    spec, actions = BackupSpec(of="vm/web", to="safe"), BackupActions(verify_generation=asked)
    order = make_order("verify", generation=asked) if report is not None else None
    node = make_node(report=report)
    status = BackupStatus(state="read", order=order, verify=BackupVerification(generation=1))
    told = {
        "nodes": [node],
        "asked": node if report else None,
        "spec": spec,
        "actions": actions,
        "status": status,
        **known,
    }
    return make_facts("Ready", **told)


def test_a_verification_is_ordered_once_per_generation() -> None:
    assert plan_backup(ready(1), NOW).status.order is None
    plan = plan_backup(ready(2), NOW)
    order = plan.status.order
    assert order is not None and (order.act, order.generation, order.node_uid) == ("verify", 2, "u-n1")
    assert (plan.status.state, plan.status.verify.generation) == ("read", 1)
    working = plan_backup(ready(2, make_report("working", order, progress=0.25)), NOW).status
    assert working.order is not None and working.message == "verified 25 %"


def test_a_verification_that_found_nothing_is_noted() -> None:
    status = plan_backup(ready(2, make_report("done", make_order("verify", generation=2), finished_at=8.0)), NOW).status
    assert (status.state, status.verified_at, status.order) == ("read", 8.0, None)
    assert status.verify == BackupVerification(generation=2, how="read", at=8.0, result="passed")


def test_damage_is_noted_by_name_and_the_backup_stays() -> None:
    report = make_report("failed", make_order("verify", generation=2), damaged=["pack a", "pack b"])
    plan = plan_backup(ready(2, report), NOW)
    assert (plan.status.phase, plan.status.state, plan.status.reason) == ("Ready", "damaged", "damaged")
    verify = plan.status.verify
    assert (verify.generation, verify.result, verify.damaged) == (2, "damaged", ["pack a", "pack b"])
    assert (plan.status.message, plan.snapshot) == ("pack a, pack b", "")


def test_a_verification_that_could_not_be_made_ends_and_changes_no_verdict() -> None:
    report = make_report("failed", make_order("verify", generation=2), message="it can't be reached")
    status = plan_backup(ready(2, report), NOW).status
    assert (status.state, status.reason, status.order) == ("read", "verifyFailed", None)
    assert (status.verify.generation, status.verify.result) == (2, "undone")
    assert (status.verify.message, status.message) == ("it can't be reached", "not verified: it can't be reached")


def test_a_verification_goes_to_another_node_when_its_own_is_gone() -> None:
    order = make_order("verify", generation=2)
    status = BackupStatus(state="read", order=order, verify=BackupVerification(generation=1))
    none = plan_backup(ready(2, status=status, nodes=[]), NOW).status
    assert (none.order, none.reason) == (None, "nodeNotReady")
    moved = plan_backup(ready(2, status=status, nodes=[make_node("n2")]), NOW).status
    assert moved.order is not None and (moved.order.node_uid, moved.order.generation) == ("u-n2", 2)


def deleted(report: BackupReport | None = None, act: BackupAct = "forget", **known: Any) -> BackupFacts:
    node = make_node(report=report)
    status = BackupStatus(disks=DISKS, repository_id="id", order=make_order(act))
    return make_facts("Ready", **{"deleting": True, "status": status, "asked": node, "nodes": [node], **known})


def test_a_deleted_backup_is_removed_from_its_repository_first() -> None:
    plan = plan_backup(deleted(act="copy", snapshot=make_snapshot()), NOW)
    order = plan.status.order
    assert order is not None and (order.act, order.backup, order.repository) == ("forget", "b", "safe")
    assert (plan.status.phase, plan.snapshot, plan.release) == ("Deleting", "drop", False)
    assert plan_backup(deleted(make_report("working", order)), NOW).status.order == make_order("forget")


def test_it_goes_once_it_is_forgotten_and_its_snapshot_is_on_the_way() -> None:
    done = make_report("done", make_order("forget"))
    plan = plan_backup(deleted(done, snapshot=make_snapshot()), NOW)
    assert (plan.snapshot, plan.release) == ("drop", False)
    assert plan_backup(deleted(done, snapshot=make_snapshot(deleting=True)), NOW).release
    assert plan_backup(deleted(done), NOW).release


def test_one_that_can_t_be_removed_is_kept_and_says_why() -> None:
    report = make_report("failed", make_order("forget"), reason="unavailable", message="no route", finished_at=NOW)
    plan = plan_backup(deleted(report), NOW)
    assert plan.status.order == make_order("forget")
    assert (plan.release, plan.status.phase, plan.status.reason) == (False, "Deleting", "unavailable")
    assert plan.status.message == "can't be removed from backuprepository/safe: no route"
    waits = plan_backup(deleted(nodes=[], asked=None), NOW)
    assert (waits.release, waits.status.order, waits.status.reason) == (False, None, "nodeNotReady")


def test_a_minute_later_the_next_node_is_asked_to_remove_it() -> None:
    report = make_report("failed", make_order("forget"), message="no route", finished_at=NOW - 60)
    status = plan_backup(deleted(report, nodes=[make_node(), make_node("n2")]), NOW).status
    order = status.order
    assert order is not None and (order.act, order.node_uid, order.generation) == ("forget", "u-n2", 1)
    assert status.message.endswith("no route")


def test_one_that_never_began_or_whose_repository_is_gone_goes_at_once() -> None:
    assert plan_backup(deleted(status=BackupStatus()), NOW).release
    assert plan_backup(deleted(repository=None), NOW).release
    never = plan_backup(deleted(status=BackupStatus(), snapshot=make_snapshot("Taking")), NOW)
    assert (never.release, never.snapshot) == (False, "drop")


def look(status: BackupRepositoryStatus, *nodes: Node, now: float = NOW) -> tuple[BackupRepositoryStatus, float]:
    return plan_repository(msgspec.structs.replace(SAFE, status=status), list(nodes), now)


def test_a_new_repository_is_checked_by_the_first_node() -> None:
    status, wait = look(BackupRepositoryStatus(), make_node(), make_node("n2"))
    order = status.order
    assert order is not None and (order.act, order.uid, order.node_uid) == ("check", "r", "u-n1")
    assert (order.url, order.repository_id, wait) == ("dir:///srv/safe", "", RETRY_SECONDS)
    assert look(status, make_node(), make_node("n2"))[0] == status
    alone, _ = look(BackupRepositoryStatus())
    assert (alone.order, alone.reason) == (None, "nodeNotReady")


def test_a_good_check_makes_it_ready_and_is_repeated_an_hour_later() -> None:
    ordered = look(BackupRepositoryStatus(), make_node())[0]
    assert ordered.order is not None
    said = make_report("done", ordered.order, repository_id="id", bytes=7, free=8, backups=2)
    status, wait = look(ordered, make_node(report=said))
    assert (status.phase, status.id, status.bytes, status.free, status.backups) == ("Ready", "id", 7, 8, 2)
    assert (status.node, status.checked_at, status.order, wait) == ("n1", NOW, None, CHECK_SECONDS)
    assert look(status, make_node(), now=NOW + 60) == (status, CHECK_SECONDS - 60)
    later = look(status, make_node(), now=NOW + CHECK_SECONDS)[0]
    assert later.phase == "Ready" and later.order is not None
    assert (later.order.repository_id, later.order.generation > ordered.order.generation) == ("id", True)


def test_a_repository_whose_spec_was_changed_is_checked_again_at_once_and_no_earlier_check_counts() -> None:
    changed = msgspec.structs.replace(SAFE, generation=2)

    def look_again(status: BackupRepositoryStatus, *nodes: Node) -> BackupRepositoryStatus:
        return plan_repository(msgspec.structs.replace(changed, status=status), list(nodes), NOW + 1)[0]

    before = look(BackupRepositoryStatus(), make_node())[0]
    assert before.order is not None
    early = look(before, make_node(report=make_report("done", before.order, repository_id="id")))[0]
    status = look_again(early, make_node())
    assert status.order is not None and status.observed_generation < 2
    done = look_again(status, make_node(report=make_report("done", status.order, repository_id="id")))
    assert (done.phase, done.observed_generation, done.order) == ("Ready", 2, None)
    assert look_again(done, make_node()).order is None


def test_after_a_failure_another_node_is_asked() -> None:
    nodes = [make_node(), make_node("n2")]
    ordered = look(BackupRepositoryStatus(), *nodes)[0]
    assert ordered.order is not None
    said = make_report("failed", ordered.order, reason="repositoryUnavailable", message="not mounted")
    failed, wait = look(ordered, make_node(report=said), nodes[1])
    assert (failed.phase, failed.reason, failed.message) == ("Failed", "repositoryUnavailable", "not mounted")
    assert (failed.order, wait) == (None, RETRY_SECONDS)
    assert look(failed, *nodes, now=NOW + 1)[0].order is None
    again = look(failed, *nodes, now=NOW + RETRY_SECONDS)[0].order
    assert again is not None and again.node_uid == "u-n2"


def test_where_a_repository_was_seen_that_could_not_be_opened_no_later_check_makes_one() -> None:
    """As when its share isn't mounted any more: the mount point is an empty place."""
    for reason, opens_only in (
        ("repositoryKey", True),
        ("repositoryHeaderLost", True),
        ("repositoryUnavailable", False),
    ):
        status, now = look(BackupRepositoryStatus(), make_node())[0], NOW
        for why in (reason, "repositoryNotFound"):
            assert status.order is not None
            said = make_report("failed", status.order, reason=why, message="no")
            failed = look(status, make_node(report=said), now=now)[0]
            now += RETRY_SECONDS
            status = look(failed, make_node(), now=now)[0]
            assert status.order is not None and status.order.opens_only is opens_only, (reason, why)


def test_the_check_of_a_node_that_is_gone_goes_to_another() -> None:
    ordered = look(BackupRepositoryStatus(), make_node())[0]
    again = look(ordered, make_node("n2"))[0].order
    assert again is not None and again.node_uid == "u-n2"


def test_one_that_is_full_since_a_snapshot_was_deleted_says_so() -> None:
    plan = plan_backup(make_facts("Snapshotting", snapshot=make_snapshot(), lost="monday"), NOW)
    assert plan.status.full_because == "the snapshot of backup/monday was deleted"
    done = copying(make_report("done", make_order()), status=plan.status)
    assert plan_backup(done, NOW).status.full_because == "the snapshot of backup/monday was deleted"
