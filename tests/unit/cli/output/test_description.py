"""An object in full, for a person."""

from __future__ import annotations

from typing import Any

from weft.cli.output.description import describe_object, name_images
from weft.cli.output.terminal import Paint
from weft.cli.preview.deletion import describe_loss
from weft.kinds.registry import find_kind
from weft.kinds.vm import MOST_DISK_BYTES


def test_a_ratio_is_no_size_and_a_declared_size_is_one() -> None:
    spec = {"overcommit": {"cpu": 4.0, "memory": 1.2}, "resources": {"hugepages": 16 * 2**30, "sriov": 8}}
    node = {"name": "n1", "uid": "u", "spec": spec}
    lines = describe_object(node, find_kind("node"), lambda since: "0s", None, Paint(False)).splitlines()
    assert "  overcommit  cpu 4, memory 1.2" in lines
    assert "  resources   hugepages 16.0 GiB, sriov 8" in lines


def test_what_people_asked_for_by_verbs_and_what_was_decided_is_told_too() -> None:
    node = {"name": "n1", "uid": "u", "spec": {}, "actions": {"drain": True, "drain_reason": "new fans"}}
    lines = describe_object(node, find_kind("node"), lambda since: "0s", None, Paint(False)).splitlines()
    assert lines[-3:] == ["actions", "  drain         yes", "  drain reason  new fans"]
    pool = {"name": "n1-local", "uid": "u", "spec": {}, "marks": {"pool": "local"}}
    lines = describe_object(pool, find_kind("pool"), lambda since: "0s", None, Paint(False)).splitlines()
    assert lines[-2:] == ["marks", "  pool  local"]


def test_what_has_no_size_of_its_own_is_told_by_where_it_gets_one() -> None:
    spec = {"cpu": 1.0, "disk": 0, "gpus": 0, "gpu_memory": 0}
    room = {"cpu": 8, "memory": 2**30, "disk": MOST_DISK_BYTES, "volumes": 4}
    lines = _describe("vm", spec, {"resize_limits": room})
    assert "  resize limits  cpu 8, memory 1.0 GiB, disk the whole pool, volumes 4" in lines
    assert lines[-3:] == ["spec", "  cpu   1", "  disk  the image's size"]
    assert "  disk        2.0 GiB" in _describe("vm", {"disk": 2**31, "gpu_memory": 2**30})
    assert "  migration bandwidth  no limit" in _describe("node", {"migration_bandwidth": 0})


def test_several_alike_have_titles_and_counters_of_nothing_are_left_out() -> None:
    steps = [{"name": "boot", "node": ""}, {"name": "disk", "node": "n1"}]
    lines = _describe("vm", {}, {"steps": steps, "others": [{"name": "a"}, {"name": "b"}]})
    assert lines[-5:] == [
        *("  steps   NAME  NODE", "          boot  –", "          disk  n1"),
        "  others  a",
        "          b",
    ]
    shop = {"name": "shop", "uid": "u", "spec": {}, "actions": {"resumes": 0, "undos": 2}}
    lines = describe_object(shop, find_kind("deployment"), lambda since: "0s", None, Paint(False)).splitlines()
    assert lines[-2:] == ["actions", "  undos  2"]


def _describe(kind: str, spec: dict[str, Any], status: dict[str, Any] | None = None) -> list[str]:
    obj = {"name": "one", "uid": "u", "spec": spec, "status": status or {}}
    return describe_object(obj, find_kind(kind), lambda since: "0s", None, Paint(False)).splitlines()


def test_images_are_told_by_their_names() -> None:
    images = [{"name": "tiny", "status": {"sha256": "a" * 64}}, {"name": "none", "status": {}}]
    assert name_images(["a" * 64, "b" * 64], images) == ["tiny", "1 unnamed"]


def test_what_goes_with_a_job_is_said_before_it_is_deleted() -> None:
    job = {"kind": "job", "name": "sums", "spec": {}, "status": {"phase": "Running", "running": 2}}
    assert describe_loss(job) == "Running; 2 tasks that run, and the logs of all go with it"
    over = {**job, "status": {"phase": "Succeeded"}}
    assert describe_loss(over) == "Succeeded; the logs of its tasks go with it"


def test_what_goes_with_a_workload_and_a_backup_is_said_and_no_more() -> None:
    vm = {"kind": "vm", "name": "web", "spec": {"image": "tiny", "volumes": ["data"]}, "status": {"phase": "Rejected"}}
    assert describe_loss(vm) == "Rejected; volumes stay: data"
    assert describe_loss(vm, with_volumes=True) == "Rejected"
    there = {**vm, "status": {"phase": "Running", "node": "n1"}}
    assert describe_loss(there, with_volumes=True) == "Running on n1; its root disk goes with it"
    backup = {"kind": "backup", "name": "monday", "spec": {"of": "vm/web"}, "status": {"phase": "Ready"}}
    assert "nothing can be restored from it any more" in describe_loss(backup)


def test_times_are_shown_as_times() -> None:
    lease = {"state": "Scheduled", "start": 1795279033.5, "end": 1795282633.5, "prepare_at": 0.0}
    [status] = [line for line in _describe("vm", {}, {"lease": lease}) if "Scheduled" in line]
    assert "start 2026-11-21" in status and "end 2026-11-21" in status and "179527" not in status
    [start] = [line for line in _describe("reservation", {"start": 1795279033.5}) if "start" in line]
    assert "2026-11-21" in start
