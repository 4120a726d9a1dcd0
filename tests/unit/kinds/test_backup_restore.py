"""What a restore makes of a backup of a VM, of a volume, and of a container's volumes."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.parts.snapshot.from_backup import RestoreBackupInput, make_parts, make_restored
from weft.objects.errors import IllegalTransition, InvalidInput

GIVEN = RestoreBackupInput(new_name="new")


def backup(of: str, *disks: str, phase: str = "Ready") -> dict[str, Any]:
    sizes = {name: {"key": name, "size": 8 << 20} for name in disks}
    status = {"phase": phase, "disks": sizes, "workload_spec": {"cpu": 1}, "image": "tiny" if of[:2] == "vm" else ""}
    return {"name": "monday", "uid": "0123456789", "spec": {"of": of}, "status": status}


def test_of_a_vm_it_is_a_vm_with_its_volumes() -> None:
    obj = backup("vm/shop", "root", "data")
    made, (snapshot, volume) = make_restored(obj, GIVEN, ""), make_parts(obj, GIVEN, "")
    assert (made["kind"], made["name"], made["spec"]["volumes"]) == ("vm", "new", ["new-data"])
    assert made["spec"]["origin"]["snapshot"] == snapshot["name"] == "new-01234567-back"
    assert (volume["kind"], volume["name"], "alone" in volume["marks"]["origin"]) == ("volume", "new-data", False)


def test_of_a_volume_it_is_a_volume_whose_data_comes_without_a_vm() -> None:
    obj = backup("volume/data", "data")
    made, (snapshot,) = make_restored(obj, GIVEN, ""), make_parts(obj, GIVEN, "")
    origin = {"snapshot": "new-01234567-back", "disk": "data", "alone": True}
    assert made == {"kind": "volume", "name": "new", "spec": {"size": 8 << 20}, "marks": {"origin": origin}}
    marks = {"automatic": "backup", "backup": "monday", "image": "", "instant": False, "pool": "local"}
    assert (snapshot["spec"], snapshot["marks"]) == ({"of": "volume/data"}, marks)


def test_of_a_container_it_is_each_of_its_volumes() -> None:
    obj = backup("container/db", "logs", "data")
    made, (snapshot, other) = make_restored(obj, GIVEN, ""), make_parts(obj, GIVEN, "")
    assert [one["name"] for one in (made, other)] == ["new-data", "new-logs"]
    assert {one["marks"]["origin"]["snapshot"] for one in (made, other)} == {snapshot["name"]}


def test_one_that_is_not_ready_is_not_restored() -> None:
    with pytest.raises(IllegalTransition, match="backup/monday is Copying, so it can't be restored yet"):
        make_restored(backup("volume/data", "data", phase="Copying"), GIVEN, "")


def test_all_of_it_goes_to_the_pool_that_is_named_and_to_the_nodes_own_if_none_is_wherever_it_was() -> None:
    obj = backup("vm/shop", "root", "data")
    obj["status"]["workload_spec"]["pool"] = "san"
    for pool in ("local", "ceph"):
        given = RestoreBackupInput(new_name="new", pool=pool)
        made, (snapshot, volume) = make_restored(obj, given, ""), make_parts(obj, given, "")
        assert (made["spec"]["pool"], volume["spec"]["pool"], snapshot["marks"]["pool"]) == (pool,) * 3
    (alone,) = make_parts(backup("volume/data", "data"), given, "")
    assert (make_restored(backup("volume/data", "data"), given, "")["spec"]["pool"], alone["marks"]["pool"]) == (
        "ceph",
        "ceph",
    )
    with pytest.raises(InvalidInput, match="a VM runs from a backup only while its disks are copied"):
        make_parts(obj, RestoreBackupInput(new_name="new", pool="ceph", instant=True), "")
