"""Snapshots in words: names, what one holds, what stays of a deleted VM, what a new VM doesn't take over."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.snapshot.description import (
    describe_left_out,
    describe_stay,
    describe_taken,
    describe_use,
    name_snapshot,
    shorten_snapshot,
)
from weft.cli.snapshot.listing import is_of
from weft.objects.identity import MAX_NAME, check_name

MIB = 1 << 20


def snapshot(name: str = "s1", **status: Any) -> dict[str, Any]:
    return {"kind": "snapshot", "name": name, "spec": {"of": "vm/web"}, "status": status}


def test_a_name_has_the_second_in_utc_and_is_one_however_long_the_vms_is() -> None:
    assert name_snapshot("web", 1764064800.0) == "web-20251125-100000"
    long = name_snapshot("a" * MAX_NAME, 1764064800.0)
    assert len(long) == MAX_NAME and check_name(long) and long.endswith("-20251125-100000")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"size": 12 * MIB, "consistency": "filesystem", "pause_ms": 7.6},
            "with frozen file systems, the VM paused for 8 ms; 12 MiB of its own",
        ),
        ({"consistency": "crash", "pause_ms": 0.2}, "as after a power failure, the VM paused for 1 ms; 0 B of its own"),
        (
            {"size": 9 * MIB, "memory": 4 * MIB, "consistency": "memory", "pause_ms": 41.0},
            "memory and disks of one instant, the VM paused for 41 ms; 9 MiB of its own, 4 MiB of memory",
        ),
        ({"size": MIB, "consistency": "stopped"}, "of a stopped VM; 1 MiB of its own"),
    ],
)
def test_what_was_taken_says_size_consistency_and_pause(status: dict[str, Any], words: str) -> None:
    assert describe_taken(snapshot(**status)) == words


def test_what_stays_of_a_deleted_vm_comes_with_the_command_that_deletes_it() -> None:
    one, six = [snapshot(size=MIB)], [snapshot(f"s{n}", size=MIB) for n in range(6)]
    assert describe_stay("vm/web", one) == "1 snapshot of vm/web stays, with 1 MiB: weft snapshot delete s1"
    assert describe_stay("vm/web", six, " -p lab").endswith("6 MiB: weft snapshot delete --field spec.of=vm/web -p lab")


def test_snapshots_of_an_earlier_vm_of_the_name_are_not_this_vms() -> None:
    vm = {"uid": "w2", "created_at": 100.0}
    ages = [("w1", 50.0), ("w2", 150.0), ("", 50.0), ("", 150.0)]
    found = [is_of({"created_at": at, "status": {"workload_uid": uid}}, vm) for uid, at in ages]
    assert found == [False, True, False, True]
    assert describe_stay("vm/web", [snapshot(size=MIB)], "", "earlier ").startswith("1 snapshot of an earlier vm/web")


def test_a_new_vm_lacks_what_only_one_can_have() -> None:
    spec = {"publish": ["8080:80"], "networks": ["blue:10.7.0.4", "red"], "lease": None, "snapshots": {"every": 60}}
    left = describe_left_out(snapshot(workload_spec=spec))
    assert left == ["published ports", "its regular snapshots", "fixed addresses: 10.7.0.4"]
    assert describe_left_out(snapshot(workload_spec={"networks": ["red"]})) == []


def test_a_description_has_what_people_know_a_vm_by_and_how_to_go_back() -> None:
    taken = snapshot(phase="Ready", node_uid="u", listed=True, workload_spec={"cpu": 2, "image": "tiny", "hold": False})
    assert shorten_snapshot(taken)["status"] == {"phase": "Ready", "vm_then": {"cpu": 2, "image": "tiny"}}
    assert "weft restore vm/web --snapshot s1 --new-name NAME" in describe_use(taken)
    assert describe_use(snapshot(phase="Failed")) == ""


def test_a_snapshot_of_volumes_says_who_stood_still_and_how_each_volume_goes_back() -> None:
    taken = snapshot(phase="Ready", size=MIB, consistency="filesystem", pause_ms=7.6, disks={"logs": {}, "data": {}})
    taken["spec"]["of"] = "container/box"
    assert describe_taken(taken) == "with frozen file systems, writers paused for 8 ms; 1 MiB of its own"
    lines = describe_use(taken).splitlines()
    assert [line.partition("weft ")[2] for line in lines] == [
        *("volume restore data --snapshot s1", "volume restore data --snapshot s1 --new-name NAME"),
        *("volume restore logs --snapshot s1", "volume restore logs --snapshot s1 --new-name NAME"),
    ]
    still = snapshot(size=MIB, consistency="stopped")
    still["spec"]["of"] = "volume/data"
    assert describe_taken(still) == "nothing used it; 1 MiB of its own"


def test_a_backup_is_described_without_ids_and_with_what_people_know_of_its_vm() -> None:
    status = {"phase": "Ready", "repository_id": "r", "snapshot_uid": "s", "order": None, "read_generation": 1}
    vm = {"cpu": 1, "image": "tiny", "force_publish": False, "gang": None, "gpus": 0}
    told = shorten_snapshot({"kind": "backup", "name": "b", "status": {**status, "workload_spec": vm}})
    assert told["status"] == {"phase": "Ready", "vm_then": {"cpu": 1, "image": "tiny"}}
