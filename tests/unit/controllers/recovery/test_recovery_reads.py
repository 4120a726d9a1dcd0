"""What the controllers of recovery plans read off other objects: who may still run the VMs, what was promoted, and who is busy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.recovery.controller import read_facts
from weft.controllers.recovery.facts import Candidate
from weft.controllers.recovery.make import make_member
from weft.controllers.recovery.members import list_answering
from weft.informer.commit import Draft
from weft.informer.view import Item, View, make_view
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.recovery.run import RecoveryRun, RunMember
from weft.kinds.parts.snapshot.restored import VmOrigin
from weft.kinds.recovery_plan import RECOVERY_PLAN, RecoveryPlanSpec, RecoveryPlanStatus
from weft.kinds.replica import REPLICA, Point, ReplicaSpec, ReplicaStatus
from weft.kinds.snapshot import SNAPSHOT, SnapshotDisk, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec

MEMBER = RunMember(replica="db", group=0, vm="db", snapshot="db-point-1", snapshot_uid="p1", point=1)


def put(view: View, envelope: Any) -> Item:
    item = Item(envelope)
    view.put_item(envelope.key, item)
    return item


def put_plan(view: View, name: str, project: str = "default", **status: Any) -> Item:
    spec, told = RecoveryPlanSpec(groups=["db"], run_generation=1), RecoveryPlanStatus(**status)
    return put(view, RECOVERY_PLAN.make(name, spec, 1.0, uid=f"{project}-{name}", project=project, status=told))


def put_replica(view: View, role: Any = "standby") -> None:
    workload = {"image": "tiny", "memory": 64 << 20, "networks": []}
    disks = {"root": SnapshotDisk(key="root", size=1 << 30, pool="local")}
    taken = SnapshotStatus(phase="Ready", workload_uid="u", workload_spec=workload, disks=disks, node="n1", listed=True)
    point = SnapshotSpec(of="vm/db", automatic="replication", replica="db")
    put(view, SNAPSHOT.make("db-point-1", point, 1.0, uid="p1", project="default", status=taken))
    spec = ReplicaSpec(of="vm/db", origin="o", workload=workload, disks={"root": 1 << 30}, role=role)
    told = ReplicaStatus(points=[Point(number=1, snapshot="db-point-1", snapshot_uid="p1", source="s")])
    put(view, REPLICA.make("db", spec, 1.0, uid="r", project="default", status=told, creator="cluster:east"))


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


@pytest.mark.parametrize(("role", "made"), [("standby", ["db"]), ("primary", [])])
def test_a_vm_that_somebody_made_from_a_point_is_no_promotion(role: str, made: list[str]) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    put_replica(view, role)
    copy = VmSpec(image="tiny", memory=64 << 20, networks=[], origin=VmOrigin(snapshot="db-point-1"))
    put(view, VM.make("copy", copy, 1.0, uid="c", project="default"))
    draft = Draft()
    run = RecoveryRun(mode="failover", generation=1, name="run", began_at=1.0, members=[MEMBER])
    make_member(draft, view, plan, run, 0, 2.0)
    written = [msgspec.json.decode(write.value) for write in draft.writes if hasattr(write, "value")]
    assert [one["name"] for one in written if one["kind"] == "vm" and one["name"] != "copy"] == made
    assert any(one["name"] == "copy" for one in written) is (role == "primary")


@pytest.mark.parametrize(
    ("project", "said"), [("default", "the rehearsal of recoveryplan/other"), ("lab", "another rehearsal")]
)
def test_a_plan_that_waits_names_none_of_another_project(project: str, said: str) -> None:
    view = make_view()
    plan = put_plan(view, "shop")
    other = put_plan(view, "other", project)
    assert read_facts(view, plan, None, 1.0).busy == ""
    assert read_facts(view, plan, other, 1.0).busy == said
    rehearsed = RecoveryRun(mode="rehearse", generation=1, name="run", began_at=1.0, members=[])
    put_plan(view, "other", project, run=rehearsed)
    assert read_facts(view, plan, None, 1.0).busy == said
