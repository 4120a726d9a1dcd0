"""What of instances of functions is told beside what a node's guests use: how many, and the memory that is counted for them."""

from __future__ import annotations

from weft.cli.node.usage import describe_instances, describe_used, draw_nodes, join_nodes

NODE = {"uid": "u1", "name": "n1", "report": {"cpu": 8, "memory": 1 << 30, "disk": 1 << 30}, "status": {}}
USE = {"cpu": 0.5, "memory": 1 << 28, "disk": 1 << 28}


def test_paused_copies_and_instances_are_told_where_nodes_are_looked_at() -> None:
    told = {
        "node": "u1",
        "age_seconds": 1.0,
        "use": USE,
        "instances": {"busy": 1, "idle": 0, "ready": 2, "memory": 208 << 20},
    }
    rows = join_nodes([NODE], [told], "cpu")
    assert rows[0]["instances"] == told["instances"]
    assert draw_nodes(rows)[0][-1] == "functions: 1 running, 2 ready, 208 MiB"


def test_nothing_is_told_of_none_nor_by_a_server_that_does_not_know() -> None:
    assert describe_instances({"busy": 0, "idle": 0, "ready": 0, "memory": 0}) == ""
    rows = join_nodes([NODE], [{"node": "u1", "age_seconds": 1.0, "use": USE}], "cpu")
    assert draw_nodes(rows)[0][-1] == ""


def test_a_machine_that_takes_more_memory_than_its_guest_was_given_is_not_told_as_over_full() -> None:
    asked = {"cpu": 1, "memory": 128 << 20, "disk": 0}
    told = describe_used({"cpu": 0.5, "memory": 238 << 20, "disk": 0}, asked)
    assert "238 MiB memory (128 MiB requested; the rest is overhead of its machine)" in told and "186" not in told
    assert "64 MiB of 128 MiB memory (50 %)" in describe_used({"cpu": 0.5, "memory": 64 << 20, "disk": 0}, asked)
