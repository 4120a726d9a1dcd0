"""An object in full, for a person."""

from __future__ import annotations

from weft.cli.deleting import describe_loss
from weft.cli.output.description import describe_object, name_images
from weft.cli.terminal import Paint
from weft.kinds.registry import find_kind


def test_a_ratio_is_no_size_and_a_declared_size_is_one() -> None:
    spec = {"overcommit": {"cpu": 4.0, "memory": 1.2}, "resources": {"hugepages": 16 * 2**30, "sriov": 8}}
    node = {"name": "n1", "uid": "u", "spec": spec}
    lines = describe_object(node, find_kind("node"), lambda since: "0s", None, Paint(False)).splitlines()
    assert "  overcommit  cpu 4, memory 1.2" in lines
    assert "  resources   hugepages 16.0 GiB, sriov 8" in lines


def test_images_are_told_by_their_names() -> None:
    images = [{"name": "tiny", "status": {"sha256": "a" * 64}}, {"name": "none", "status": {}}]
    assert name_images(["a" * 64, "b" * 64], images) == ["tiny", "1 without a name"]


def test_what_goes_with_a_job_is_said_before_it_is_deleted() -> None:
    job = {"kind": "job", "name": "sums", "spec": {}, "status": {"phase": "Running", "running": 2}}
    assert describe_loss(job) == "Running; 2 tasks that run, and the logs of all go with it"
    over = {**job, "status": {"phase": "Succeeded"}}
    assert describe_loss(over) == "Succeeded; the logs of its tasks go with it"
