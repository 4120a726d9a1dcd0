"""A VM whose node handed its guest over to another cluster in a history that the store has lost."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import Put
from weft.controllers.workload.controller import plan_workload
from weft.informer.view import Item, View, make_view
from weft.kinds.allocation import AllocatedVolume, AllocationReport, AllocationSpec, Resources
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.allocated_migration import MigrationReport
from weft.kinds.migration import MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.node import NODE, NodeReport, NodeStatus
from weft.kinds.parts.migration.departing import ReclaimInput, VmReclaim, reclaim_lost
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.vm import VM, VmActions, VmSpec
from weft.kinds.volume import VOLUME, VolumeSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import IllegalTransition
from weft.objects.identity import Ref

LEFT = AllocationReport(
    incarnation=1,
    state="stopped",
    reason="leftCluster",
    migration=MigrationReport(key="lost", phase="handedOver", peer="west/n7"),
)
HANDED = msgspec.structs.replace(LEFT, state="running", reason="illegalTransition")


def place_spec() -> AllocationSpec:
    return AllocationSpec(
        node="n1",
        node_uid="node-1",
        workload=Ref("vm", "web", "vm-1", "default"),
        workload_generation=1,
        incarnation=1,
        desired="run",
        resources=Resources(cpu=1, memory=1 << 28),
        volumes=[
            AllocatedVolume(name=name, uid=f"{name}-1", size=1 << 30, pool="local", pool_id="p")
            for name in ("data", "other")
        ],
    )


def make_world(report: AllocationReport, *more: Envelope, reclaim: VmReclaim | None = None) -> tuple[View, Item]:
    view = make_view()
    node = NODE.make("n1", NODE.spec(), 1.0, uid="node-1", status=NodeStatus(phase="Ready"))
    spec, asked = VmSpec(image="tiny", volumes=["data"]), VmActions(reclaim=reclaim)
    vm = VM.make("web", spec, 1.0, uid="vm-1", project="default", actions=asked)
    parts = [msgspec.Raw(msgspec.json.encode(part)) for part in (place_spec(), report)]
    place = Envelope(kind="allocation", name="node-1.a", uid="a", spec=parts[0], report=parts[1])
    link = CLUSTER.make("west", ClusterSpec(url="https://x", ca="", projects={"default": "lab"}), 1.0, uid="w")
    volumes = [
        VOLUME.make(name, VolumeSpec(size=1 << 30), 1.0, uid=uid, project="default")
        for name, uid in (("data", "data-1"), ("other", "of later"))
    ]
    for envelope in (node, vm, place, link, *volumes, *more):
        view.put_item(envelope.key, Item(envelope))
    item = view.get(vm.key)
    assert item is not None
    return view, item


def write_all(view: View, item: Item, *, silent: bool = False) -> dict[str, Envelope]:
    commit = plan_workload(view, item, silent, 5.0)
    written = [
        decode_envelope(one.value) for one in (commit.writes if commit is not None else ()) if isinstance(one, Put)
    ]
    return {one.kind if one.kind != "volume" else one.key: one for one in written}


def list_back(written: dict[str, Envelope]) -> list[str]:
    place = written.get("allocation")
    return decode_part(place.spec, AllocationSpec).back_from if place is not None else []


def test_a_guest_that_left_in_a_lost_migration_leaves_only_its_name() -> None:
    view, item = make_world(LEFT)
    written = write_all(view, item)
    left, marks = decode_part(written["vm"].spec, VmSpec), decode_part(written["vm"].marks, WorkloadMarks)
    assert (marks.departed, left.run, left.volumes, left.networks) == ("west/lab/web", "stop", [], [])
    gone = decode_part(written["allocation"].spec, AllocationSpec)
    assert written["allocation"].deleting_since == 5.0
    assert (gone.role, gone.desired) == ("source", "stop")
    assert gone.migration is not None and gone.migration.taken_over, "its node keeps nothing of it, and starts nothing"
    assert [key for key in written if key.startswith("/volume")] == ["/volume/default/data"], (
        "not a later one of a name"
    )


@pytest.mark.parametrize("what", ["silent", "led", "here"])
def test_it_stays_as_it_is_while_its_guest_may_be_here_or_somebody_else_ends_it(what: str) -> None:
    more: list[Envelope] = []
    if what == "led":
        spec = MigrationSpec(workload="vm/web", cluster="west")
        status = MigrationStatus(phase="Pending", started_at=1.0)
        more.append(MIGRATION.make("web-1", spec, 1.0, uid="m", project="default", status=status))
    if what == "here":
        copy = OrphanCopy("b", msgspec.structs.replace(place_spec(), node="n2", node_uid="node-2"), "here")
        report = NodeReport(orphans=["b vm/default/web 1"], orphan_allocations=[msgspec.json.encode(copy).decode()])
        node = NODE.make("n2", NODE.spec(), 1.0, uid="node-2", status=NodeStatus(phase="Ready"))
        node.report = msgspec.Raw(msgspec.json.encode(report))
        more.append(node)
    view, item = make_world(LEFT, *more)
    vm = write_all(view, item, silent=what == "silent").get("vm")
    assert vm is None or not decode_part(vm.marks, WorkloadMarks).departed


def test_one_that_was_handed_over_and_no_more_stays_as_it_is_until_people_take_it_back() -> None:
    view, item = make_world(HANDED)
    written = write_all(view, item)
    assert "allocation" not in written
    status = decode_part(written["vm"].status, WorkloadStatus)
    assert (status.phase, status.reason, status.handed_over) == ("Unknown", "handedOver", "lost")
    assert "weft vm reclaim web" in status.message and "west" in status.message
    shown = {"kind": "vm", "name": "web", "spec": {}, "status": msgspec.to_builtins(status)}
    assert reclaim_lost(shown, ReclaimInput()) == {"reclaim": {"key": "lost"}}
    assert reclaim_lost(shown, ReclaimInput(force=True))["reclaim"]["force"]
    with pytest.raises(IllegalTransition, match="isn't missing: no node has handed it over"):
        reclaim_lost({**shown, "status": {}}, ReclaimInput())
    with pytest.raises(IllegalTransition, match="migrated to cluster west, where it is lab/web"):
        reclaim_lost({**shown, "marks": {"departed": "west/lab/web"}}, ReclaimInput())
    with pytest.raises(IllegalTransition, match="left to another cluster by replication/web"):
        reclaim_lost({**shown, "marks": {"fenced": "web"}, "status": {}}, ReclaimInput())


def test_what_its_node_has_said_holds_while_that_tries_again_to_break_the_migration_off() -> None:
    tries = msgspec.structs.replace(HANDED, reason="")
    view, item = make_world(tries)
    assert decode_part(write_all(view, item)["vm"].status, WorkloadStatus).handed_over == "", (
        "it may still be broken off"
    )
    for known, phase in (("lost", "Unknown"), ("an earlier one", "Running")):
        view, item = make_world(tries)
        former = WorkloadStatus(handed_over=known)
        envelope = msgspec.structs.replace(item.envelope, status=msgspec.Raw(msgspec.json.encode(former)))
        view.put_item(item.key, Item(envelope))
        written = write_all(view, Item(envelope))
        assert decode_part(written["vm"].status, WorkloadStatus).phase == phase


def test_people_take_nothing_back_that_the_other_cluster_has_taken_over() -> None:
    view, item = make_world(LEFT, reclaim=VmReclaim(key="lost"))
    written = write_all(view, item)
    assert list_back(written) == []
    assert decode_part(written["vm"].marks, WorkloadMarks).departed == "west/lab/web"


def test_a_hand_over_within_the_cluster_or_one_that_is_known_is_nothing_lost() -> None:
    within = msgspec.structs.replace(HANDED, migration=MigrationReport(key="k", phase="handedOver", peer="n2"))
    for report in (within, msgspec.structs.replace(HANDED, reason=""), msgspec.structs.replace(HANDED, migration=None)):
        view, item = make_world(report, reclaim=VmReclaim(key="k"))
        written = write_all(view, item)
        assert decode_part(written["vm"].status, WorkloadStatus).handed_over == ""
        assert list_back(written) == []
