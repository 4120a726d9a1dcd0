"""The verbs of replicas at the API: a promotion makes the VM and ends what the other cluster may send, in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api.test_api_snapshots import act, tell
from tests.scenario.api_lab import ApiLab, make_image

from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.replication.work import ReceiveOrder, SendOrder
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replica import Point, ReplicaStatus
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus
from weft.kinds.snapshot import SNAPSHOT, SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, UnknownField, WeftError
from weft.objects.identity import Ref
from weft.trust.tickets import verify_ticket

DISKS = {"root": 1 << 30, "data": 5 << 20}
WORKLOAD = {"image": "tiny", "memory": 64 << 20, "volumes": ["data"]}
REPLICA = {
    "kind": "replica",
    "name": "web",
    "spec": {"of": "vm/web", "origin": "o", "workload": WORKLOAD, "disks": DISKS},
}
POINT = {
    "origin": "o",
    "generation": 1,
    "source": "s",
    "disks": {"root": {"key": "root", "size": 1 << 30, "whole": True}},
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    lab.client.create(REPLICA)
    yield lab
    lab.close()


def seed(lab: ApiLab) -> None:
    """The replica has point 4."""
    disks = {name: SnapshotDisk(key=name, size=size, pool="local") for name, size in DISKS.items()}
    taken = SnapshotStatus(
        phase="Ready", workload_uid="u", workload_spec=WORKLOAD, disks=disks, node="n1", node_uid="u1", listed=True
    )
    of, marks = SnapshotSpec(of="vm/web"), SnapshotMarks(automatic="replication", replica="web")
    lab.put(SNAPSHOT.make("web-point-4", of, 1.0, uid="p4", project="default", marks=marks, status=taken))
    order = ReceiveOrder(uid="u", node_uid="u1", generation=1, origin="o", number=5, snapshot="p5", pool="local")
    point = Point(number=4, snapshot="web-point-4", snapshot_uid="p4", source="s4")
    tell(
        lab,
        "/replica/default/web",
        ReplicaStatus(phase="Standby", points=[point], node="n1", node_uid="u1", order=order),
    )


def test_a_promotion_makes_the_vm_and_its_volumes_and_refuses_further_points(lab: ApiLab) -> None:
    seed(lab)
    assert act(lab, "replica/web", "receive", **POINT)["ticket"]
    made = act(lab, "replica/web", "promote")
    assert (made["kind"], made["name"], made["spec"]["origin"]["snapshot"]) == ("vm", "web", "web-point-4")
    assert made["spec"]["volumes"] == ["web-data"] and made.get("owner") is None
    assert lab.client.get("volume", "web-data")["marks"]["origin"] == {"snapshot": "web-point-4", "disk": "data"}
    replica = lab.client.get("replica", "web")["marks"]
    assert (replica["role"], replica["generation"], replica["became"]) == ("primary", 2, "web")
    with pytest.raises(IllegalTransition) as stale:
        act(lab, "replica/web", "receive", **POINT)
    assert (stale.value.token, stale.value.details["generation"]) == ("staleGeneration", 2)
    with pytest.raises(IllegalTransition) as stale:
        lab.client.patch("replica", "web", {"spec": {"keep": 5}})
    assert stale.value.token == "staleGeneration"
    with pytest.raises(IllegalTransition, match="promoted before"):
        act(lab, "replica/web", "promote")


def test_a_promotion_under_a_name_that_is_taken_changes_nothing(lab: ApiLab) -> None:
    seed(lab)
    lab.client.create({"kind": "vm", "name": "web", "spec": {"image": "tiny"}})
    with pytest.raises(WeftError):
        act(lab, "replica/web", "promote")
    assert lab.client.get("replica", "web")["marks"]["role"] == "standby"
    assert act(lab, "replica/web", "promote", new_name="shop")["name"] == "shop"


def test_without_a_complete_point_nothing_is_promoted_and_without_a_node_nothing_comes(lab: ApiLab) -> None:
    for given in ({}, {"point": 7}):
        with pytest.raises(IllegalTransition) as none:
            act(lab, "replica/web", "promote", **given)
        assert none.value.token == "noPoint"
    with pytest.raises(WeftError) as waits:
        act(lab, "replica/web", "receive", **POINT)
    assert waits.value.token == "replicaNotReady"


def test_a_project_without_the_quota_refuses_the_replica_before_any_byte_comes(lab: ApiLab) -> None:
    lab.client.put({"kind": "quota", "name": "project", "spec": {"disk": 2 << 30}})
    with pytest.raises(Forbidden, match="disk"):
        lab.client.create({**REPLICA, "name": "other", "spec": {**REPLICA["spec"], "disks": {"root": 4 << 30}}})


@pytest.mark.parametrize(
    "changes",
    [{"origin": ""}, {"disks": {}}, {"disks": {"data": 1}}, {"disks": {"root": 0}}, {"workload": {"x": "y" * 70_000}}],
)
def test_a_replica_that_can_not_be_is_refused(lab: ApiLab, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        lab.client.create({**REPLICA, "name": "other", "spec": {**REPLICA["spec"], **changes}})


def test_a_recovery_plan_names_replicas_that_are_here_and_is_run_by_who_may(lab: ApiLab) -> None:
    plan = {"kind": "recoveryplan", "name": "shop", "spec": {"groups": ["web"], "checks": ["web=command:true"]}}
    with pytest.raises(WeftError, match='replica "mail"'):
        lab.client.create({**plan, "spec": {"groups": ["web", "mail"]}})
    with pytest.raises(InvalidInput, match=r"checks\[0\]: mail is in no group"):
        lab.client.create({**plan, "spec": {"groups": ["web"], "checks": ["mail=tcp:25"]}})
    lab.client.create(plan)
    operator = lab.with_token("operator", use="access", role="operator")
    assert operator.verb("recoveryplan", "shop", "rehearse")["actions"]["run_generation"] == 1
    with pytest.raises(IllegalTransition, match="being rehearsed") as busy:
        operator.verb("recoveryplan", "shop", "rehearse")
    assert busy.value.token == "isBusy"
    with pytest.raises(Forbidden):
        operator.verb("recoveryplan", "shop", "failover")
    after = lab.client.verb("recoveryplan", "shop", "failover", {"force": True})["actions"]
    assert (after["run_generation"], after["run_mode"], after["force"]) == (2, "failover", True)
    with pytest.raises(InvalidInput):
        lab.client.create({**plan, "name": "other", "spec": {"groups": ["web"], "run_generation": 3}})


def test_what_only_verbs_set_is_changed_by_no_manifest(lab: ApiLab) -> None:
    lab.client.create({"kind": "recoveryplan", "name": "shop", "spec": {"groups": ["web"]}})
    steps = [{"project": "default", "workload": "vm/web", "uid": "u", "from": "n1", "to": "n2"}]
    lab.client.create({"kind": "rebalanceplan", "name": "even", "spec": {"steps": steps}})
    link = {"url": "https://10.0.0.1:6443", "ca": "", "projects": {"default": "lab"}}
    lab.put(CLUSTER.make("west", msgspec.convert(link, ClusterSpec), 1.0))
    lab.client.create({"kind": "vm", "name": "db", "spec": {"image": "tiny"}})
    lab.client.create({"kind": "replication", "name": "db", "spec": {"of": "vm/db", "cluster": "west"}})
    there = lab.client.get("replication", "db")
    lab.client.put({"kind": "replication", "name": "db", "spec": there["spec"]})  # as it is
    assert lab.client.get("replication", "db")["generation"] == there["generation"]
    for kind, name, field in (("replication", "db", "handover"), ("replica", "web", "role")):
        with pytest.raises(UnknownField, match=field):
            lab.client.patch(kind, name, {"spec": {field: "primary"}})
    spec = {**lab.client.get("replica", "web")["spec"], "keep": 5}
    there = lab.client.put({"kind": "replica", "name": "web", "spec": spec, "marks": {"role": "primary"}})
    assert (there["spec"]["keep"], there["marks"]["role"]) == (5, "standby")  # of marks manifests say nothing


def test_who_may_not_promote_fails_nothing_over(lab: ApiLab) -> None:
    lab.client.create({"kind": "recoveryplan", "name": "shop", "spec": {"groups": ["web"]}})
    rules = {"recoveryplan": ["get", "failover", "rehearse"], "vm": ["create"]}
    lab.client.create({"kind": "role", "name": "watch", "spec": {"rules": rules}})
    lab.client.create({"kind": "role", "name": "guard", "spec": {"rules": {**rules, "replica": ["promote"]}}})
    watch, guard = (lab.with_token(use="access", role=role) for role in ("watch", "guard"))
    with pytest.raises(Forbidden, match="promote the replicas of a recovery plan") as refused:
        watch.verb("recoveryplan", "shop", "failover", {"force": True})
    assert refused.value.details["permission"] == "replica:promote"
    assert lab.client.get("recoveryplan", "shop")["actions"]["run_generation"] == 0
    assert watch.verb("recoveryplan", "shop", "rehearse")["actions"]["run_generation"] == 1  # which promotes nothing
    assert guard.verb("recoveryplan", "shop", "failover", {"force": True})["actions"]["run_mode"] == "failover"


def test_a_vm_that_belongs_to_another_object_is_not_replicated(lab: ApiLab) -> None:
    """What a deployment keeps running would run again beside its copy."""
    lab.put(CLUSTER.make("west", ClusterSpec(url="https://10.0.0.1:6443", ca="", projects={"default": "lab"}), 1.0))
    owner = Ref("deployment", "shop", "d", "default")
    lab.put(VM.make("shop-1", VmSpec(image="tiny"), 1.0, project="default", owner=owner))
    lab.put(VM.make("own", VmSpec(image="tiny"), 1.0, project="default"))
    with pytest.raises(IllegalTransition, match="vm/shop-1 belongs to deployment/shop") as told:
        lab.client.create(
            {"kind": "replication", "name": "shop-1", "spec": {"of": "vm/shop-1", "cluster": "west"}},
        )
    assert (told.value.token, told.value.field) == ("isOwned", "spec.of") and "of its own" in str(told.value.hint)
    lab.client.create({"kind": "replication", "name": "own", "spec": {"of": "vm/own", "cluster": "west"}})


def test_what_is_left_of_a_vm_that_migrated_to_another_cluster_is_not_replicated(lab: ApiLab) -> None:
    """It would be a Failed replication that people have to delete."""
    lab.put(CLUSTER.make("west", ClusterSpec(url="https://10.0.0.1:6443", ca="", projects={"default": "lab"}), 1.0))
    marks = WorkloadMarks(departed="west/lab/gone")
    lab.put(VM.make("gone", VmSpec(image="tiny", run="stop"), 1.0, project="default", marks=marks))
    spec = {"of": "vm/gone", "cluster": "west"}
    with pytest.raises(IllegalTransition, match="vm/gone migrated to cluster west, where it is lab/gone") as told:
        lab.client.create({"kind": "replication", "name": "gone", "spec": spec})
    assert (told.value.token, told.value.field) == ("departed", "spec.of")
    assert lab.client.list("replication").items == []


@pytest.mark.parametrize("automatic", [False, True])
def test_a_replication_is_refused_of_a_project_that_the_link_is_not_for(lab: ApiLab, automatic: bool) -> None:
    """Whatever project there its people name: the administrators of the link say where it leads."""
    lab.put(CLUSTER.make("west", ClusterSpec(url="https://10.0.0.1", ca="", projects={"default": "lab"}), 1.0))
    lab.client.create({"kind": "project", "name": "atk", "spec": {}})
    for project in ("default", "atk"):
        lab.put(VM.make("web", VmSpec(image="tiny"), 1.0, project=project))

    def make(project: str, **spec: Any) -> dict[str, Any]:
        given = {"of": "vm/web", "cluster": "west", "automatic": automatic, **spec}
        return lab.client.create({"kind": "replication", "name": "web", "project": project, "spec": given})

    for there in ({}, {"project_there": "lab"}, {"project_there": "default"}, {"project_there": "atk"}):
        with pytest.raises(Forbidden, match="the link with cluster west is not for project atk") as refused:
            make("atk", **there)
        assert (refused.value.token, refused.value.field) == ("projectNotLinked", "spec.cluster")
    with pytest.raises(InvalidInput, match="leads from project default to lab, and to no other") as wrong:
        make("default", project_there="default")
    assert wrong.value.field == "spec.project_there"
    assert make("default", project_there="lab")["spec"]["project_there"] == "lab"


def test_a_second_automatic_replication_of_a_vm_is_refused_and_names_the_first(lab: ApiLab) -> None:
    for name in ("west", "south"):
        lab.put(
            CLUSTER.make(name, ClusterSpec(url="https://10.0.0.1", ca="c", projects={"default": "lab"}), 1.0, uid=name)
        )
    lab.put(VM.make("shop", VmSpec(image="tiny"), 1.0, uid="v", project="default"))

    def make(name: str, *, automatic: bool) -> None:
        spec = {"of": "vm/shop", "cluster": name, "automatic": automatic}
        lab.client.create({"kind": "replication", "name": f"shop-{name}", "spec": spec})

    make("west", automatic=True)
    with pytest.raises(InvalidInput, match="replication/shop-west has it for vm/shop already") as refused:
        make("south", automatic=True)
    assert refused.value.field == "spec.automatic"
    make("south", automatic=False)
    with pytest.raises(InvalidInput, match="replication/shop-west"):
        lab.client.patch("replication", "shop-south", {"spec": {"automatic": True}})
    lab.client.patch("replication", "shop-west", {"spec": {"automatic": False}})
    lab.client.patch("replication", "shop-south", {"spec": {"automatic": True}})


def test_only_the_node_that_is_ordered_to_send_a_point_may_and_only_that_point(lab: ApiLab) -> None:
    """Of a second copy, whose source is in this cluster; nobody promotes it."""
    seed(lab)
    node, other = lab.join("n1"), lab.join("n2")
    left = REPLICATION.make("web-copy", ReplicationSpec(of="vm/web", cluster=""), 1.0, uid="o", project="default")
    lab.put(left)
    found = lab.stored("/replica/default/web")
    assert found is not None
    found.owner = left.ref
    lab.put(found)
    order = SendOrder(
        uid="o", node_uid=node.uid, attempt=1, cluster="", project="default", replica="web", manifest={}, snapshot="s"
    )
    tell(lab, "/replication/default/web-copy", ReplicationStatus(order=order))

    def ask(who: Any, **changes: Any) -> Any:
        return who.client.verb("replica", "web", "receive", {**POINT, **changes})

    claims = verify_ticket(lab.api.settings.ticket_key, ask(node)["ticket"], 0.0)
    assert claims["token"] == "", "or the gateway would look for a token of that name, and end a stream that takes long"
    for who, changes in ((other, {}), (node, {"source": "t"}), (node, {"generation": 2}), (node, {"origin": "p"})):
        with pytest.raises(Forbidden):
            ask(who, **changes)
    with pytest.raises(Forbidden):
        node.client.verb("replica", "web", "promote", {})
    tell(lab, "/replication/default/web-copy", ReplicationStatus())
    with pytest.raises(Forbidden):
        ask(node)
    with pytest.raises(IllegalTransition) as alone:
        act(lab, "replica/web", "promote")
    assert alone.value.token == "secondCopy"
