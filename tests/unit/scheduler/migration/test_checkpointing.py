"""Which way a container moves, by what both nodes say of themselves, and how that is told."""

from __future__ import annotations

import msgspec

from weft.kinds.allocation import AllocatedContainer, AllocationReport, AllocationSpec, Resources
from weft.kinds.migration import MigrationSpec, stands_still
from weft.kinds.node import NodeReport, NodeRuntime
from weft.objects.identity import Ref
from weft.scheduler.migration.checkpointing import (
    choose_checkpointing,
    find_checkpoint_obstacle,
    find_missing_capability,
    name_runtime,
)
from weft.scheduler.node.facts import read_runtimes


def node(checkpoint: str, kind: str = "container") -> NodeReport:
    runtime = NodeRuntime(name="oci", kinds=[kind], isolations=["process", "container"], checkpoint=checkpoint)
    return NodeReport(runtimes=[runtime])


CAN, LACKS = node("yes"), node("criu is not installed")


def choose(mode: str, here: NodeReport = CAN, there: NodeReport = CAN, bar: str = "") -> tuple[str, str]:
    wish = MigrationSpec(workload="container/web", mode=mode)  # type: ignore[arg-type]
    assert stands_still(wish)
    return choose_checkpointing(wish, bar, ("n1", here), ("n2", there))


def test_it_is_saved_where_both_nodes_can_unless_people_want_it_stopped() -> None:
    assert choose("best") == ("may", "it is saved on n1 and continues on n2")
    assert choose("live")[0] == "must"
    assert choose("cold") == ("", "it is stopped on n1 and starts on n2")


def test_a_node_that_cant_is_named_with_what_it_lacks() -> None:
    for here, there, name in ((LACKS, CAN, "n1"), (CAN, LACKS, "n2"), (LACKS, LACKS, "n1")):
        saves, way = choose("best", here, there)
        assert saves == "" and way.endswith(f"({name}: criu is not installed)"), way
    assert "no runtime that can save containers" in choose("best", CAN, node("yes", "vm"))[1]
    assert choose("best", bar="it runs in a machine of its own")[1].endswith("(it runs in a machine of its own)")


def test_a_node_says_what_it_runs_on_so_that_live_moves_go_nowhere_else() -> None:
    runs = name_runtime("container")
    assert runs in read_runtimes(CAN) and runs not in read_runtimes(LACKS)
    assert (find_missing_capability(CAN), find_missing_capability(LACKS)) == ("", "criu is not installed")
    unusable = NodeReport(runtimes=[msgspec.structs.replace(CAN.runtimes[0], usable=False)])
    assert find_missing_capability(unusable)


def test_what_no_node_can_save_is_known_before_any_is_asked() -> None:
    spec = AllocationSpec(
        node="n1",
        node_uid="u1",
        workload=Ref("container", "web", "c", "default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=1 << 26),
        container=AllocatedContainer(image="web"),
    )
    assert find_checkpoint_obstacle(spec, AllocationReport(state="running")) == ""
    assert find_checkpoint_obstacle(spec, AllocationReport(state="stopped")) == "it is not running"
    microvm = msgspec.structs.replace(spec, container=AllocatedContainer(image="web", isolation="vm"))
    assert "machine of its own" in find_checkpoint_obstacle(microvm, AllocationReport(state="running"))
