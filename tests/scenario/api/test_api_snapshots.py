"""The verbs of snapshots at the API: what they make in one commit, what they refuse, and what nodes hear of deleted ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_allocation, make_image, make_vm

from weft.contracts.store import Delete
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin, AllocatedSnapshot
from weft.kinds.parts.workload import WorkloadMarks, WorkloadStatus
from weft.kinds.snapshot import SnapshotDisk, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Condition, decode_part, set_condition
from weft.objects.errors import AlreadyExists, Forbidden, IllegalTransition, NotFound, WeftError

ROOT = {"root": SnapshotDisk(key="root", size=1 << 30, pool="local")}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    lab.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.9.0.0/24"}})
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": 5 << 20}})
    spec = {"networks": ["blue:10.9.0.7"], "publish": ["18080:80"], "volumes": ["data"], "user_data": "#!/bin/sh\n"}
    lab.client.create(make_vm("web", **spec))
    tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1"))
    yield lab
    lab.close()


def tell(lab: ApiLab, key: str, status: msgspec.Struct, *conditions: Condition) -> None:
    """What the object's controller says of it."""
    envelope = lab.stored(key)
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    for condition in conditions:
        set_condition(envelope, condition)
    lab.put(envelope)


def act(lab: ApiLab, what: str, verb: str, **given: Any) -> dict[str, Any]:
    kind, name = what.split("/")
    return lab.client.verb(kind, name, verb, given)


def make_ready(lab: ApiLab, name: str, **more: Any) -> None:
    web = lab.client.get("vm", "web")
    spec = {key: value for key, value in web["spec"].items() if key != "user_data"}
    disks = {**ROOT, "data": SnapshotDisk(key="v1", size=5 << 20, pool="local")}
    status = SnapshotStatus(
        phase="Ready", workload_uid=web["uid"], workload_spec=spec, disks=disks, size=7 << 20, node="n1", node_uid="u1"
    )
    tell(lab, f"/snapshot/default/{name}", msgspec.structs.replace(status, **more))


def test_the_verb_makes_a_snapshot_of_the_vm_that_keeps_its_image(lab: ApiLab) -> None:
    made = act(lab, "vm/web", "snapshot", name="before", memory=True)
    assert (made["kind"], made["name"]) == ("snapshot", "before")
    assert made["spec"] == {"of": "vm/web", "memory": True}
    assert made["marks"] == {
        **{"automatic": "", "image": "tiny", "group": "", "members": []},
        **{"backup": "", "replica": "", "instant": False, "pool": "local"},
    }
    assert act(lab, "vm/web", "snapshot")["name"].startswith("web-")
    lab.client.delete("vm", "web")
    lab.run(lab.store.commit([]))
    with pytest.raises(WeftError, match="in use"):
        lab.client.delete("image", "tiny")


def apply(lab: ApiLab, name: str, **spec: Any) -> list[dict[str, Any]]:
    return lab.client.apply([{"kind": "snapshot", "name": name, "spec": {"of": "vm/web", **spec}}])


@pytest.mark.parametrize("how", ["apply", "create"])
def test_a_snapshot_that_is_written_by_hand_keeps_its_image_too(lab: ApiLab, how: str) -> None:
    if how == "apply":
        apply(lab, "before")
    else:
        lab.client.create({"kind": "snapshot", "name": "before", "spec": {"of": "vm/web"}})
    shown = lab.client.get("snapshot", "before")
    assert shown["marks"]["image"] == "tiny"
    assert [one["action"] for one in lab.client.apply([shown])] == ["unchanged"]
    lab.client.delete("vm", "web")
    with pytest.raises(WeftError, match="in use"):
        lab.client.delete("image", "tiny")


def test_nobody_but_the_server_says_what_made_a_snapshot(lab: ApiLab) -> None:
    manifest = {"kind": "snapshot", "name": "a", "spec": {"of": "vm/web"}, "marks": {"automatic": "clone"}}
    assert lab.client.create(manifest)["marks"]["automatic"] == ""


@pytest.mark.parametrize("phase", ["Stopped", "Suspended", "Failed"])
def test_memory_that_a_vm_does_not_have_is_refused_however_the_snapshot_is_made(lab: ApiLab, phase: str) -> None:
    tell(lab, "/vm/default/web", WorkloadStatus(phase=phase, node="n1"))
    for make in (
        lambda: apply(lab, "a", memory=True),
        lambda: lab.client.create({"kind": "snapshot", "name": "a", "spec": {"of": "vm/web", "memory": True}}),
        lambda: act(lab, "vm/web", "snapshot", name="a", memory=True),
    ):
        with pytest.raises(WeftError, match=f"vm/web is {phase.lower()}, so it has no memory to keep"):
            make()
    apply(lab, "a")


@pytest.mark.parametrize(
    ("status", "given", "why"),
    [
        (WorkloadStatus(), {}, "its disks are not made yet"),
        (
            WorkloadStatus(phase="Stopped", node="n1"),
            {"memory": True},
            "vm/web is stopped, so it has no memory to keep",
        ),
        (WorkloadStatus(phase="Running", node="n1", conversion="c"), {}, "conversion/c"),
    ],
)
def test_a_snapshot_that_makes_no_sense_is_refused_with_the_reason(
    lab: ApiLab, status: WorkloadStatus, given: dict[str, Any], why: str
) -> None:
    tell(lab, "/vm/default/web", status)
    with pytest.raises(IllegalTransition, match=why):
        act(lab, "vm/web", "snapshot", name="a", **given)


@pytest.mark.parametrize(
    ("verb", "given"), [("snapshot", {}), ("clone", {"new_name": "b"}), ("restore", {"snapshot": "a"})]
)
def test_of_a_vm_that_migrated_to_another_cluster_every_verb_says_where_it_is(
    lab: ApiLab, verb: str, given: dict[str, Any]
) -> None:
    left, marks = VmSpec(image="tiny", run="stop"), WorkloadMarks(departed="west/default/gone")
    lab.put(VM.make("gone", left, 1.0, project="default", marks=marks, status=WorkloadStatus(phase="Stopped")))
    with pytest.raises(IllegalTransition, match="vm/gone migrated to cluster west, where it is default/gone") as told:
        act(lab, "vm/gone", verb, **given)
    assert told.value.token == "departed"


def test_a_restore_in_place_is_a_change_of_the_vm_and_a_second_one_waits_its_turn(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a")
    with pytest.raises(IllegalTransition, match="snapshot/a is Pending"):
        act(lab, "vm/web", "restore", snapshot="a")
    make_ready(lab, "a")
    with pytest.raises(IllegalTransition, match="the snapshot has none") as none:
        act(lab, "vm/web", "restore", snapshot="a", memory=True)
    assert "leave memory out" in (none.value.hint or ""), "a new name wouldn't help"
    changed = act(lab, "vm/web", "restore", snapshot="a")
    assert changed["actions"]["restore"] == {"snapshot": "a", "generation": changed["generation"]} | (
        {key: value for key, value in changed["actions"]["restore"].items() if key in ("memory", "keep")}
    )
    with pytest.raises(IllegalTransition, match="is being restored") as refused:
        act(lab, "vm/web", "restore", snapshot="a")
    assert refused.value.token == "isRestoring"
    done = Condition("Restored", "True", "Restored", "", 1.0, changed["generation"])
    tell(lab, "/vm/default/web", WorkloadStatus(phase="Running", node="n1"), done)
    assert act(lab, "vm/web", "restore", snapshot="a")["actions"]["restore"]["generation"] == changed["generation"] + 1


def test_a_restore_goes_on_from_the_memory_only_in_the_machine_that_it_is_of(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a", memory=True)
    make_ready(lab, "a", memory=1 << 20)
    lab.client.patch("vm", "web", {"spec": {"memory": 1 << 30}})
    with pytest.raises(IllegalTransition, match=r"another machine then \(memory\)"):
        act(lab, "vm/web", "restore", snapshot="a", memory=True)
    assert not act(lab, "vm/web", "restore", snapshot="a")["actions"]["restore"].get("memory")


def test_a_restore_of_another_vms_snapshot_is_refused_and_one_of_none_is_not_found(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a")
    make_ready(lab, "a", workload_uid="another")
    with pytest.raises(IllegalTransition, match="an earlier VM of that name"):
        act(lab, "vm/web", "restore", snapshot="a")
    with pytest.raises(NotFound, match='snapshot "b" not found'):
        act(lab, "vm/web", "restore", snapshot="b")


def test_a_restore_under_a_new_name_makes_vm_and_volumes_in_one_commit_though_the_old_vm_is_gone(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a", memory=True)
    make_ready(lab, "a", memory=1 << 20)
    before = lab.revision()
    made = act(lab, "snapshot/a", "restore", new_name="copy")
    assert lab.revision() == before + 1
    spec = made["spec"]
    assert (made["kind"], made["name"], spec["volumes"]) == ("vm", "copy", ["copy-data"])
    assert (spec["networks"], spec["publish"], spec["user_data"], spec["disk"]) == (["blue"], [], "", 1 << 30)
    assert spec["origin"] == {"snapshot": "a", "memory": True}
    volume = lab.client.get("volume", "copy-data")
    assert (volume["spec"]["size"], volume["marks"]["origin"]) == (5 << 20, {"snapshot": "a", "disk": "data"})
    with pytest.raises(WeftError, match="exists already"):
        act(lab, "snapshot/a", "restore", new_name="copy")
    without = act(lab, "snapshot/a", "restore", new_name="plain", memory=False)
    assert not without["spec"]["origin"].get("memory")


def test_a_restore_whose_network_is_gone_is_refused_with_its_name_and_leaves_nothing(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a")
    make_ready(lab, "a")
    gone = [Delete("/vm/default/web"), Delete("/network/default/blue")]  # as controllers do
    lab.run(lab.store.commit(gone))
    with pytest.raises(NotFound, match='network "blue" not found'):
        act(lab, "snapshot/a", "restore", new_name="copy")
    assert [one["name"] for one in lab.client.list("volume").items] == ["data"]
    assert not lab.client.list("vm").items


def test_a_twin_begins_from_a_snapshot_that_is_made_with_it(lab: ApiLab) -> None:
    before = lab.revision()
    twin = act(lab, "vm/web", "clone", new_name="twin")
    assert lab.revision() == before + 1
    source = lab.client.get("snapshot", twin["spec"]["origin"]["snapshot"])
    assert (source["marks"]["automatic"], source["spec"]["memory"], source["spec"]["of"]) == ("clone", True, "vm/web")
    assert twin["spec"]["volumes"] == ["twin-data"] and twin["spec"]["publish"] == []
    assert lab.client.get("volume", "twin-data")["marks"]["origin"]["disk"] == "data"
    lab.journal.flush()
    events = list(lab.client.events())
    created = {event["object"]["name"] for event in events if event["reason"] == "Created"}
    assert {"twin", "twin-data", source["name"]} <= created


def test_copies_of_volumes_with_one_beginning_have_names_of_their_own_under_a_long_new_name(lab: ApiLab) -> None:
    volumes = ["payroll-ledger-current", "payroll-ledger-archive"]
    for name in volumes:
        lab.client.create({"kind": "volume", "name": name, "spec": {"size": 5 << 20}})
    lab.client.create(make_vm("src", volumes=volumes))
    tell(lab, "/vm/default/src", WorkloadStatus(phase="Running", node="n1"))
    twin = act(lab, "vm/src", "clone", new_name="payroll-production-europe-west-application-server-number")
    copies = {one: lab.client.get("volume", one)["marks"]["origin"]["disk"] for one in twin["spec"]["volumes"]}
    assert list(copies.values()) == volumes and len(copies) == 2


@pytest.mark.parametrize("new_name", ["web", "twin"])
def test_a_twin_whose_name_is_taken_is_refused_by_that_name_and_nothing_is_to_be_deleted(
    lab: ApiLab, new_name: str
) -> None:
    act(lab, "vm/web", "clone", new_name="twin")
    with pytest.raises(AlreadyExists, match=f'VM "{new_name}" exists already') as refused:
        act(lab, "vm/web", "clone", new_name=new_name)
    assert refused.value.hint == "use another name"
    lab.client.create({"kind": "volume", "name": "other-data", "spec": {"size": 5 << 20}})
    with pytest.raises(AlreadyExists, match='volume "other-data" exists already') as refused:
        act(lab, "vm/web", "clone", new_name="other")
    assert refused.value.hint == "use another name; the names of its volumes follow from it"
    assert len(lab.client.list("snapshot").items) == 1


def test_a_repeated_clone_is_answered_with_the_twin_that_it_made(lab: ApiLab) -> None:
    path = "/v1/projects/default/vms/web:clone"
    answers = [
        lab.client.http.request("POST", path, {"new_name": "twin"}, headers={"Idempotency-Key": "k"}).json()
        for _ in range(2)
    ]
    assert answers[0]["uid"] == answers[1]["uid"]
    assert len(lab.client.list("snapshot").items) == 1


def test_ready_snapshots_count_as_disk_of_the_project(lab: ApiLab) -> None:
    act(lab, "vm/web", "snapshot", name="a")
    make_ready(lab, "a", size=10 << 20)
    lab.client.create({"kind": "quota", "name": "project", "spec": {"disk": 20 << 20}})
    with pytest.raises(Forbidden, match="disk"):
        lab.client.create({"kind": "volume", "name": "more", "spec": {"size": 10 << 20}})
    lab.client.create({"kind": "volume", "name": "less", "spec": {"size": 4 << 20}})
    with pytest.raises(Forbidden, match="disk"):
        act(lab, "vm/web", "snapshot", name="b")
        act(lab, "vm/web", "snapshot", name="c")


def test_a_node_hears_which_of_its_snapshots_go_once_none_of_its_guests_needs_them(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    uid = act(lab, "vm/web", "snapshot", name="a")["uid"]
    make_ready(lab, "a")
    listed = {"node": {"snapshots": [{"uid": uid, "size": 5}]}}
    assert node.report(**listed)["remove_snapshots"] == []
    lab.client.delete("snapshot", "a")
    place = make_allocation(node, lab.client.get("vm", "web"))

    def desire(**changes: Any) -> None:
        spec = msgspec.structs.replace(decode_part(place.spec, AllocationSpec), **changes)
        place.spec = msgspec.Raw(msgspec.json.encode(spec))
        lab.put(place)

    def removed(of: Any) -> list[str]:
        for _ in range(50):
            if found := of.report(**listed)["remove_snapshots"]:
                return list(found)
        return []

    desire(snapshots=[AllocatedSnapshot(uid=uid, name="a")])
    assert not removed(node)
    desire(snapshots=[], origin=AllocatedOrigin(snapshot=uid, generation=2))
    assert not removed(node)
    desire(origin=None, migration=AllocatedMigration(key="m/1", peer="n2", peer_uid="u2", peer_allocation="u2.a"))
    assert not removed(node)  # a copy may be on its way
    desire(migration=None)
    assert removed(node) == [uid]
    assert other.report(node={"snapshots": []})["remove_snapshots"] == []
