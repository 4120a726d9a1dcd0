"""What a replica becomes that takes over: a VM of its own, or the one that stands still there, which goes back to the point."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import AtRevision
from weft.controllers.failover.facts import Group, list_groups, make_request
from weft.controllers.failover.take_over import plan_return, plan_take_over
from weft.informer.view import Item, View, make_view
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replica import REPLICA, Point, ReplicaMarks, ReplicaSpec, ReplicaStatus
from weft.kinds.replication import REPLICATION, ReplicationActions, ReplicationMarks, ReplicationSpec, ReplicationStatus
from weft.kinds.snapshot import SNAPSHOT, SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import decode_envelope, decode_part
from weft.protocol.failover.claim import Claim, ClaimRefused, Generation, Newer
from weft.protocol.failover.witness import WitnessAnswer

LINK = Item(CLUSTER.make("east", ClusterSpec(url="https://x", ca="", grants=["take-over"]), 1.0, uid="c"))
GRANTED = Claim(Generation(2, "fresh"), "west")


def make_place(vm: str, *, fenced: str, workload: dict[str, str] | None = None) -> tuple[View, Item]:
    """A cluster with a replica, which continues ``vm``."""
    view = make_view()
    disks = {"root": SnapshotDisk(key="root", size=1 << 30, pool="local")}
    taken = SnapshotStatus(phase="Ready", workload_uid="u", workload_spec={"image": "tiny"}, disks=disks, node="n1")
    of, point_of = SnapshotSpec(of="vm/web"), SnapshotMarks(automatic="replication", replica="web")
    point = Point(number=4, snapshot="web-point-4", snapshot_uid="p4", source="s")
    spec, marks = (
        ReplicaSpec(of="vm/web", origin="o", disks={"root": 1 << 30}, workload=workload or {}),
        ReplicaMarks(automatic=True, renewals=7),
    )
    status = ReplicaStatus(phase="Standby", points=[point], node="n1", vm=vm, vm_uid="v" if vm else "")
    made = [
        SNAPSHOT.make("web-point-4", of, 1.0, uid="p4", project="default", marks=point_of, status=taken),
        REPLICA.make("web", spec, 1.0, uid="r", project="default", creator="cluster:east", marks=marks, status=status),
    ]
    if vm:
        left = WorkloadMarks(fenced=fenced)
        made.append(VM.make(vm, VmSpec(image="tiny", run="stop"), 1.0, uid="v", project="default", marks=left))
    for envelope in made:
        view.put_item(envelope.key, Item(envelope))
    replica = view.get(made[1].key)
    assert replica is not None
    return view, replica


def plan(vm: str, *, fenced: str) -> tuple[list[str], ReplicaMarks, list[str]]:
    """What is written, the replica after it, and what the commit relies on."""
    view, replica = make_place(vm, fenced=fenced)
    commit = plan_take_over(view, replica, LINK, GRANTED, 100.2, "witnesses")
    written = {write.key: write for write in commit.writes}
    after = decode_part(decode_envelope(written[replica.key].value, 1).marks, ReplicaMarks)  # type: ignore[union-attr]
    relied = [one.key for one in commit.preconditions if isinstance(one, AtRevision)]
    assert [event.reason for event in commit.events] == ["TookOver"]
    assert "the last 1m41s is lost" in commit.events[0].message  # of 100.2 s: never less than it is
    return sorted(written), after, relied


def test_it_makes_a_vm_of_its_own() -> None:
    written, after, relied = plan("", fenced="")
    assert written == ["/replica/default/web", "/vm/default/web"] and relied == [
        "/cluster/-/east",
        "/replica/default/web",
    ]
    assert (after.role, after.generation, after.granted, after.promoted) == ("primary", 2, "fresh", 0)


def test_the_vm_that_was_left_here_goes_back_to_the_point() -> None:
    written, after, relied = plan("web", fenced="web")
    assert written == ["/replica/default/web"]
    assert sorted(relied) == ["/cluster/-/east", "/replica/default/web", "/vm/default/web"]
    assert (after.role, after.generation, after.granted, after.promoted, after.became) == (
        "primary",
        2,
        "fresh",
        4,
        "web",
    )


@pytest.mark.parametrize(
    ("workload", "run"),
    [({"run": "stop"}, "stop"), ({"run": "run"}, "run"), ({}, "run"), ({"run": "stop", "fenced": "web"}, "run")],
    ids=["stopped", "running", "unsaid", "left to this cluster"],
)
def test_a_vm_that_people_stopped_stays_stopped(workload: dict[str, str], run: str) -> None:
    view, replica = make_place("", fenced="", workload=workload)
    commit = plan_take_over(view, replica, LINK, GRANTED, 100.0, "witnesses")
    (made,) = [write for write in commit.writes if write.key == "/vm/default/web"]
    assert decode_part(decode_envelope(made.value, 1).spec, VmSpec).run == run  # type: ignore[union-attr]
    assert ("stopped as it was" in commit.events[0].message) == (run == "stop")


FIRST = Claim(Generation(1, "o"), "east")


def ask_next(view: View, replica: Item, answered: WitnessAnswer) -> tuple[str, str, int, bool]:
    """After the commit that follows an answer: what the witness is asked next, and what is in the replica."""
    group = Group(replica, "o", FIRST, is_standby=True)
    commit = plan_return(view, group, "west", answered, "witnesses")
    if commit is not None:
        envelope = decode_envelope(commit.writes[0].value, 2)  # type: ignore[union-attr]
        replica = Item(envelope)
    marks = replica.marks(ReplicaMarks)
    request = make_request(Group(replica, "o", FIRST, is_standby=True), "east", "")
    return request.what, request.returned, marks.renewals, marks.restored


def test_a_grant_that_was_not_used_is_noted_before_it_is_given_back() -> None:
    view, replica = make_place("", fenced="")
    unused = WitnessAnswer(answer=Newer(GRANTED), epoch="", is_armed=True, is_used=False)
    assert ask_next(view, replica, unused) == ("return", "fresh", 8, False)  # no decision from before comes after that
    for answer in (Newer(GRANTED), ClaimRefused("notHolder")):
        said = WitnessAnswer(answer=answer, epoch="", is_armed=True, is_used=True)
        assert ask_next(view, replica, said) == ("claim", "", 7, False)


def test_a_replica_of_a_restored_store_only_inspects_and_gives_back_nothing_that_may_have_been_used() -> None:
    view, replica = make_place("", fenced="")
    envelope = msgspec.structs.replace(replica.envelope)
    envelope.marks = msgspec.Raw(
        msgspec.json.encode(msgspec.structs.replace(replica.marks(ReplicaMarks), restored=True))
    )
    restored = Item(envelope)
    view.put_item(envelope.key, restored)
    unused = WitnessAnswer(answer=Newer(GRANTED), epoch="", is_armed=True, is_used=False)
    unknown = WitnessAnswer(answer=ClaimRefused("notHolder"), epoch="", is_armed=False)
    for said in (unused, unknown):
        assert ask_next(view, restored, said) == ("inspect", "", 7, True)
    known = WitnessAnswer(answer=ClaimRefused("notHolder"), epoch="", is_armed=True)
    assert ask_next(view, restored, known) == ("claim", "", 7, False)


def test_a_source_names_the_turn_that_it_ended_also_while_it_is_deleted_and_runs_alone() -> None:
    for guard, alone, deleting, turn in (
        ("hold", False, False, 0),
        ("release", False, False, 4),
        ("", True, True, 4),
        ("", False, True, None),
    ):
        view = make_view()
        spec, asked = ReplicationSpec(of="vm/web", cluster="west"), ReplicationActions(alone=alone)
        marks = ReplicationMarks(guard=guard, arming=4)  # type: ignore[arg-type]
        status = ReplicationStatus(phase="Deleting" if deleting else "Replicating")
        made = REPLICATION.make("web", spec, 1.0, uid="o", project="default", actions=asked, marks=marks, status=status)
        made.deleting_since = 2.0 if deleting else None
        view.put_item(made.key, Item(made))
        groups = list_groups(view, "west", "east", "west")
        asked = [make_request(one, "west", "") for one in groups]
        assert [(one.what, one.turn) for one in asked] == ([] if turn is None else [("claim", turn)])
