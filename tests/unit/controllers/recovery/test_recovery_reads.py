"""What the controllers of recovery plans read off other objects: who may still run the VMs, what was promoted, and who is busy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.contracts.store import MAX_WRITES, LeaseHeld, Put
from weft.controllers.recovery.controller import RecoveryPlans, plan_one, read_facts
from weft.controllers.recovery.facts import Candidate, RecoveryFacts, ServiceReadiness, VmFacts
from weft.controllers.recovery.make import make_member
from weft.controllers.recovery.members import find_promoted, list_answering
from weft.controllers.recovery.plan import plan_recovery
from weft.controllers.replication.controller import find_promoted as find_former
from weft.informer.commit import Draft
from weft.informer.view import Item, View, make_view
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.recovery.run import RecoveryRun, RunCheck, RunMember, RunResult
from weft.kinds.image import IMAGE, ImageSpec
from weft.kinds.parts.snapshot.restored import VmOrigin
from weft.kinds.quota import QUOTA, QuotaSpec
from weft.kinds.recovery_plan import (
    MOST_CHECKS,
    MOST_MEMBERS,
    MOST_SPEC_BYTES,
    RECOVERY_PLAN,
    RecoveryPlanActions,
    RecoveryPlanSpec,
    RecoveryPlanStatus,
    check_recovery_plan,
)
from weft.kinds.replica import REPLICA, Point, ReplicaMarks, ReplicaSpec, ReplicaStatus
from weft.kinds.service import SERVICE, ServiceSpec
from weft.kinds.snapshot import SNAPSHOT, SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Condition, decode_envelope, decode_part, merge_part, set_condition
from weft.objects.errors import InvalidInput
from weft.store.limits import check_commit

MEMBER = RunMember(replica="db", group=0, vm="db", snapshot="db-point-1", snapshot_uid="p1", point=1)


def put(view: View, envelope: Any) -> Item:
    item = Item(envelope)
    view.put_item(envelope.key, item)
    return item


ASKED = RecoveryPlanActions(run_generation=1)


def put_plan(view: View, name: str, project: str = "default", **status: Any) -> Item:
    spec, told = RecoveryPlanSpec(groups=["db"]), RecoveryPlanStatus(**status)
    made = RECOVERY_PLAN.make(name, spec, 1.0, uid=f"{project}-{name}", project=project, actions=ASKED, status=told)
    return put(view, made)


def put_image(view: View) -> None:
    put(view, IMAGE.make("tiny", ImageSpec(url="https://example.org/tiny"), 1.0, uid="i", project="default"))


def put_replica(view: View, role: Any = "standby", *, name: str = "db", became: str = "") -> None:
    workload = {"image": "tiny", "memory": 64 << 20, "networks": []}
    disks = {"root": SnapshotDisk(key="root", size=1 << 30, pool="local")}
    taken = SnapshotStatus(phase="Ready", workload_uid="u", workload_spec=workload, disks=disks, node="n1", listed=True)
    point, uid = SnapshotSpec(of=f"vm/{name}"), "p1" if name == "db" else f"p-{name}"
    of = SnapshotMarks(automatic="replication", replica=name)
    put(view, SNAPSHOT.make(f"{name}-point-1", point, 1.0, uid=uid, project="default", marks=of, status=taken))
    spec = ReplicaSpec(of=f"vm/{name}", origin="o", workload=workload, disks={"root": 1 << 30})
    marks = ReplicaMarks(role=role, became=became)
    told = ReplicaStatus(points=[Point(number=1, snapshot=f"{name}-point-1", snapshot_uid=uid, source="s")])
    put(
        view,
        REPLICA.make(
            name, spec, 1.0, uid=f"r-{name}", project="default", marks=marks, status=told, creator="cluster:east"
        ),
    )


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ("Linked", ["cluster/east answers"]),
        ("Suspect", ["cluster/east answers"]),
        ("Refused", ["cluster/east answers"]),
        ("Failed", ["cluster/east is Failed"]),
        ("Pending", ["cluster/east is Pending"]),
        ("Unreachable", []),
        (None, ["cluster/east is not linked any more"]),
    ],
)
def test_only_a_cluster_that_is_known_to_be_silent_runs_nothing(phase: Any, said: list[str]) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    put_replica(view)
    if phase is not None:
        spec = ClusterSpec(url="https://10.0.0.1:6443", ca="")
        put(view, CLUSTER.make("east", spec, 1.0, uid="e", status=ClusterStatus(phase=phase)))
    assert list_answering(view, plan, [Candidate(MEMBER)]) == said
    assert list_answering(view, plan, [Candidate(MEMBER, is_handed_over=True)]) == []


@pytest.mark.parametrize(
    ("reason", "said"),
    [("PrimarySpeaks", ["cluster/east answers its witness"]), ("PrimarySilent", []), ("Unreachable", [])],
)
def test_where_the_line_is_down_the_witness_is_believed(reason: str, said: list[str]) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    put_replica(view)
    replica = view.get("/replica/default/db")
    assert replica is not None
    set_condition(replica.envelope, Condition("Witnessed", "True", reason))
    put(view, CLUSTER.make("east", ClusterSpec(url="", ca=""), 1.0, uid="e", status=ClusterStatus(phase="Unreachable")))
    assert list_answering(view, plan, [Candidate(MEMBER)]) == said


@pytest.mark.parametrize(
    ("role", "made", "labelled"),
    [("standby", ["db"], []), ("primary", [], ["db"])],
)
def test_a_vm_that_somebody_made_from_a_point_is_no_promotion(role: str, made: list[str], labelled: list[str]) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    put_replica(view, role, became="db" if role == "primary" else "")
    there = ["copy", *labelled]
    for name in there:
        copy = VmSpec(image="tiny", memory=64 << 20, networks=[], origin=VmOrigin(snapshot="db-point-1"))
        put(view, VM.make(name, copy, 1.0, uid=name, project="default"))
    draft = Draft()
    run = RecoveryRun(mode="failover", generation=1, name="run", began_at=1.0, members=[MEMBER])
    make_member(draft, view, plan, run, 0, 2.0)
    written = [msgspec.json.decode(write.value) for write in draft.writes if isinstance(write, Put)]
    assert [one["name"] for one in written if one["kind"] == "vm"] == made + labelled


@pytest.mark.parametrize("left", ["", "copy", "db"])
def test_a_promoted_replica_whose_vm_is_gone_says_so_whatever_else_was_made_from_its_points(left: str) -> None:
    """Also one that has the name, and began from something else."""
    view = make_view()
    put_replica(view, "primary", became="db")
    if left:
        origin = VmOrigin(snapshot="db-point-1" if left == "copy" else "another-point-1")
        put(view, VM.make(left, VmSpec(image="tiny", origin=origin), 1.0, uid="c", project="default"))
    spec = RecoveryPlanSpec(groups=["db"])
    asked = RecoveryPlanActions(run_generation=1, run_mode="failover")
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=asked))
    (candidate,) = read_facts(view, plan, {}, 1.0).candidates
    assert candidate.problem == "replica/db was promoted, and what it became is gone"


@pytest.mark.parametrize(
    ("vm", "origin", "found"),
    [("renamed", VmOrigin(snapshot="db-point-1"), "renamed"), ("db", None, "db"), ("other", None, "")],
)
def test_what_a_replica_became_that_was_promoted_before_this_was_noted_is_searched(
    vm: str, origin: VmOrigin | None, found: str
) -> None:
    """``became`` is empty then: it isn't that its VM is gone. One that went back to a point has the name in the status."""
    view = make_view()
    put_replica(view, "primary")
    made = put(view, VM.make(vm, VmSpec(image="tiny", origin=origin), 1.0, uid="c", project="default"))
    replica = view.get("/replica/default/db")
    assert replica is not None
    if vm == "db":
        told = msgspec.structs.replace(replica.status(ReplicaStatus), vm="db", vm_uid="c")
        envelope = msgspec.structs.replace(replica.envelope, status=merge_part(replica.envelope.status, told))
        replica = put(view, envelope)
    there = find_promoted(view, replica)
    assert (there.envelope.name if there is not None else "") == found
    if origin is not None:
        former = find_former(view, made)
        assert former is not None and former[0].envelope.name == "db"


def test_a_run_that_the_release_before_ended_is_only_cleared() -> None:
    """Its result stood in the run, too. Else it would go on, and fail for VMs that are being removed."""
    result = {"mode": "rehearse", "generation": 1, "phase": "Passed", "started_at": 1.0, "ended_at": 2.0}
    result |= {"rpo_seconds": 1.0, "rto_seconds": 1.0}
    member = RunMember(replica="db", group=0, vm="gone", begun_at=1.0, checks=[RunCheck(type="running")])
    now = RecoveryRun(mode="rehearse", generation=1, name="run", began_at=1.0, members=[member])
    stored = msgspec.to_builtins(now) | {"result": result}
    del stored["ended"]
    run = msgspec.convert(stored, RecoveryRun)
    view = make_view()
    status: dict[str, Any] = {"run": run, "rehearsal": msgspec.convert(result, RunResult)}
    step = plan_recovery(read_facts(view, put_plan(view, "shop", **status), {}, 9.0), 9.0)
    assert step.status.rehearsal is not None and step.status.rehearsal.phase == "Passed"
    assert (step.status.run, step.status.ended_generation) == (None, 1)


@pytest.mark.parametrize(("project", "said"), [("default", "the rehearsal of recoveryplan/other"), ("lab", "")])
def test_a_project_rehearses_one_plan_at_a_time_and_waits_for_no_other_project(project: str, said: str) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    other = put_plan(view, "other", project)
    assert read_facts(view, plan, {}, 1.0).busy == ""
    assert read_facts(view, plan, {project: other}, 1.0).busy == said
    rehearsed = RecoveryRun(mode="rehearse", generation=1, name="run", began_at=1.0, members=[])
    put_plan(view, "other", project, run=rehearsed)
    assert read_facts(view, plan, {}, 1.0).busy == said
    put_plan(view, "other", project, run=msgspec.structs.replace(rehearsed, ended=True))
    assert read_facts(view, plan, {}, 1.0).busy == ""


def put_quota(view: View, **limits: Any) -> None:
    put(view, QUOTA.make("project", QuotaSpec(**limits), 1.0, uid="q", project="default"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"memory": 200 << 20}, "project default: memory: 0 B of 200 MiB used, 256 MiB more requested"),
        ({"memory": 256 << 20, "instances": 4, "disk": 4 << 30}, ""),  # the replicas' disks count no more
        ({"instances": 3}, "project default: instances: 0 of 3 used, 4 more requested"),
    ],
)
def test_a_failover_that_the_quota_does_not_carry_is_refused_before_anything_is_promoted(
    limits: dict[str, int], said: str
) -> None:
    view, names = make_view(), ["a", "b", "c", "d"]  # each alone fits
    put_image(view)
    put_quota(view, **limits)
    for name in names:
        put_replica(view, name=name)
    spec = RecoveryPlanSpec(groups=names)
    asked = RecoveryPlanActions(run_generation=1, run_mode="failover", force=True)
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=asked))
    facts = read_facts(view, plan, {}, 1.0)
    assert ([one.problem for one in facts.candidates], facts.excess) == ([""] * 4, said)
    commit, status = plan_one(view, plan, {}, 1.0)
    assert commit is not None
    if said:
        assert status.failover is not None and (status.failover.phase, status.failover.reason) == (
            *("Refused",),
            "quotaExceeded",
        )
        assert status.failover.message.endswith(said) and len(commit.writes) == 1
    else:
        assert status.run is not None


@pytest.mark.parametrize("mode", ["failover", "rehearse"])
def test_a_promoted_replica_whose_vm_was_deleted_bars_no_run_of_all(mode: Any) -> None:
    view = make_view()
    put_image(view)
    put_replica(view, "primary", name="old")
    put_replica(view, name="db")
    spec = RecoveryPlanSpec(all=True)
    asked = RecoveryPlanActions(run_generation=1, run_mode=mode)
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=asked))
    assert [(one.member.replica, one.problem) for one in read_facts(view, plan, {}, 1.0).candidates] == [("db", "")]


def test_what_is_left_of_earlier_runs_goes_with_no_more_writes_than_a_commit_has() -> None:
    view = make_view()
    put_replica(view)
    run = RecoveryRun(mode="failover", generation=1, name="run", began_at=1.0, members=[MEMBER])
    spec = RecoveryPlanSpec(groups=["db"])
    asked = RecoveryPlanActions(run_generation=1, run_mode="failover", force=True)
    status = RecoveryPlanStatus(phase="FailingOver", run=run, asked_generation=1)
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=asked, status=status))
    one = ServiceSpec(selector={"app": "x"}, ports=["80"])
    for number in range(150):
        left = SERVICE.make(f"rehearsal-old-{number}", one, 1.0, project="default", owner=plan.envelope)
        left.finalizers = ["endpoints"]
        left.deleting_since = 1.0 if number < 90 else None  # of these, a node that is lost says nothing
        put(view, left)
    commit, now = plan_one(view, plan, {}, 2.0)
    assert commit is not None and now.run is not None and now.run.members[0].begun_at == 2.0
    names = [msgspec.json.decode(write.value)["name"] for write in commit.writes if isinstance(write, Put)]
    assert "db" in names and sum(name.startswith("rehearsal-old-") for name in names) == 60
    for number in range(90):
        more = SERVICE.make(f"rehearsal-more-{number}", one, 1.0, project="default", owner=plan.envelope)
        more.finalizers = ["endpoints"]
        put(view, more)
    commit, _ = plan_one(view, plan, {}, 2.0)
    assert commit is not None and len(commit.writes) == MAX_WRITES


def test_a_run_of_large_vms_and_the_removal_of_large_ones_are_commits_that_the_store_takes() -> None:
    view, names = make_view(), [f"db{number}" for number in range(MOST_MEMBERS)]
    put_image(view)
    large = {"image": "tiny", "memory": 64 << 20, "user_data": "x" * 60_000}
    for name in names:
        put_replica(view, name=name)
        snapshot = view.get(f"/snapshot/default/{name}-point-1")
        assert snapshot is not None
        told = msgspec.structs.replace(snapshot.status(SnapshotStatus), workload_spec=large)
        put(view, msgspec.structs.replace(snapshot.envelope, status=merge_part(snapshot.envelope.status, told)))
    spec = RecoveryPlanSpec(groups=[",".join(names)])
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=ASKED))
    for number in range(90):
        vm = VmSpec(image="tiny", user_data="x" * 60_000)
        left = VM.make(f"rehearsal-old-{number}", vm, 1.0, uid=f"o{number}", project="default", owner=plan.envelope)
        left.finalizers = ["node"]
        put(view, left)
    commit, status = plan_one(view, plan, {}, 2.0)
    assert commit is not None and status.run is not None and len(status.run.members) == MOST_MEMBERS, status
    check_commit(commit.writes, [*commit.preconditions, LeaseHeld("x", 1)])
    removed = [write.key for write in commit.writes if write.key.startswith("/vm/")]
    held = {one.key for one in commit.preconditions if not isinstance(one, LeaseHeld)}
    assert removed and {f"/snapshot/default/{name}-point-1" for name in names} <= held


def test_a_step_that_the_store_refuses_is_named_in_the_status_and_tried_again() -> None:
    view = make_view()
    put_image(view)
    put_replica(view)
    spec = RecoveryPlanSpec(groups=["db"])
    plan = put(view, RECOVERY_PLAN.make("shop", spec, 1.0, uid="shop", project="default", actions=ASKED))
    controller = RecoveryPlans()
    controller.note_refusal(plan.key, "commit of 2 MB, at most 1 MB")
    (said,) = controller.plan(view, [plan.key], 2.0).commits
    assert [write.key for write in said.writes] == [plan.key]
    (write,) = said.writes
    assert isinstance(write, Put)
    plan = put(view, decode_envelope(write.value))
    status = plan.status(RecoveryPlanStatus)
    assert status.run is None and status.reason == "storeRefused" and "at most 1 MB" in status.message
    (again,) = controller.plan(view, [plan.key], 3.0).commits
    (write,) = again.writes
    assert isinstance(write, Put)
    status = decode_part(decode_envelope(write.value).status, RecoveryPlanStatus)
    assert status.run is not None and (status.reason, status.message) == ("", "")


def test_a_refused_step_of_a_plan_without_a_run_is_tried_again_though_nothing_changes() -> None:
    view = make_view()
    plan = put_plan(view, "shop", phase="Ready", ended_generation=1, reason="storeRefused")
    controller = RecoveryPlans()
    controller.note_refusal(plan.key, "the store is full")
    assert plan.key in controller.plan(view, [plan.key], 2.0).later


def test_a_point_that_is_removed_while_a_run_goes_on_is_replaced_by_the_newest() -> None:
    view = make_view()
    put_replica(view)
    plan = put_plan(view, "shop")
    gone = msgspec.structs.replace(MEMBER, snapshot="db-point-0", snapshot_uid="p0", point=0)
    run = RecoveryRun(mode="rehearse", generation=1, name="run", began_at=1.0, members=[gone])
    (member,) = make_member(Draft(), view, plan, run, 0, 2.0).members
    assert (member.snapshot, member.snapshot_uid, member.point) == ("db-point-1", "p1", 1)


def test_the_largest_plan_with_its_results_is_no_larger_than_an_object_may_be() -> None:
    command = "x" * ((MOST_SPEC_BYTES - 4000) // MOST_CHECKS)
    names = [f"{number:02d}{'n' * 60}" for number in range(MOST_MEMBERS)]
    checks = [f"n{number % 5}=command:{command}" for number in range(MOST_CHECKS)]
    long = "\x00" * 5000  # what a guest says, six bytes each
    members = [
        RunMember(
            replica=name,
            group=0,
            vm=name,
            snapshot=name,
            snapshot_uid=name,
            begun_at=1.0,
            checks=[
                RunCheck(type="running"),
                RunCheck(type="command", target=command, service=name),
                RunCheck(type="command", target=command, service=name),
            ],
        )
        for name in names
    ]
    run = RecoveryRun(mode="rehearse", generation=1, name="run", began_at=1.0, members=members)
    spec = RecoveryPlanSpec(groups=[",".join(names)], checks=checks, deadline=10.0)
    facts = RecoveryFacts(
        name="shop",
        deleting=False,
        spec=spec,
        actions=ASKED,
        status=RecoveryPlanStatus(run=run),
        vms={name: VmFacts("Boot", long) for name in names},
        ready={name: ServiceReadiness(False, long) for name in names},
        leftovers=True,
    )
    status = plan_recovery(facts, 1000.0).status
    assert status.rehearsal is not None and status.run is not None and status.run.is_over
    status.failover = status.rehearsal
    assert len(msgspec.json.encode([spec, status])) < 250_000
    with pytest.raises(InvalidInput, match="groups and checks together have"):
        check_recovery_plan(RecoveryPlanSpec(groups=["n0,n1,n2,n3,n4"], checks=[one + "x" * 200 for one in checks]))


def test_a_replica_that_takes_over_automatically_is_left_to_the_witness() -> None:
    view = make_view()
    plan, cluster = put_plan(view, "shop"), ClusterSpec(url="https://x", ca="")
    put(view, CLUSTER.make("east", cluster, 1.0, uid="c", status=ClusterStatus(phase="Unreachable")))
    for automatic, said in ((False, []), (True, ["replica/db takes over automatically once the witness grants it"])):
        spec, marks = ReplicaSpec(of="vm/db", origin="o", disks={"root": 1}), ReplicaMarks(automatic=automatic)
        put(view, REPLICA.make("db", spec, 1.0, uid="r", project="default", creator="cluster:east", marks=marks))
        assert list_answering(view, plan, [Candidate(MEMBER)]) == said
        assert list_answering(view, plan, [Candidate(MEMBER, is_handed_over=True)]) == []
        assert list_answering(view, plan, [Candidate(MEMBER, is_promoted=True)]) == []
