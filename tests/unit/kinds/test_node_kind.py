"""What people may say of a node."""

from __future__ import annotations

from typing import Any

import pytest

from weft.controllers.node.controller import describe_over
from weft.kinds.fields.taint import is_tolerated
from weft.kinds.node import NODE, NodeReport, NodeSpec, NodeStatus, check_node
from weft.kinds.parts.node.columns import read_type
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict

GIB = 2**30


def read(**fields: Any) -> NodeSpec:
    spec = read_strict(fields, NodeSpec)
    check_node(spec)
    return spec


def test_amounts_and_ratios_are_read_as_people_write_them() -> None:
    spec = read(
        resources={"sriov": "8", "hugepages": "16G", "nvidia.com/mig": 7}, overcommit={"cpu": "400%", "memory": 1}
    )
    assert spec.resources == {"sriov": 8, "hugepages": 16 * GIB, "nvidia.com/mig": 7}
    assert spec.overcommit == {"cpu": 4.0, "memory": 1.0}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"type": "clod"}, "spec.type", "clod"),
        ({"resources": {"cpu": 8}}, "spec.resources.cpu", "detected by the node itself"),
        ({"resources": {"gpu.memory": 8}}, "spec.resources.gpu.memory", "detected by the node itself"),
        ({"resources": {"SR IOV": 8}}, "spec.resources", "not a valid name"),
        ({"resources": {"sriov": -1}}, "spec.resources.sriov", "not a count or a size"),
        ({"resources": {"sriov": "1.5"}}, "spec.resources.sriov", "not a count or a size"),
        ({"resources": {"sriov": True}}, "spec.resources.sriov", "not a count or a size"),
        ({"overcommit": {"cpus": 4}}, "spec.overcommit.cpus", "only cpu, memory and disk"),
        ({"overcommit": {"cpu": 0}}, "spec.overcommit.cpu", "out of range"),
        ({"overcommit": {"cpu": "nan"}}, "spec.overcommit.cpu", "not a ratio"),
        ({"overcommit": {"cpu": "1e400"}}, "spec.overcommit.cpu", "not a ratio"),
        ({"taints": ["Batch Only"]}, "spec.taints[0]", "not a taint"),
        ({"taints": ["a="]}, "spec.taints[0]", "not a taint"),
        ({"taints": ["a", "a"]}, "spec.taints", "twice"),
        ({"taints": [f"t{n}" for n in range(17)]}, "spec.taints", "at most 16"),
        ({"cost": -1}, "spec.cost", ">= 0"),
        ({"data": ["raw data"]}, "spec.data[0]", "not a valid name of data"),
        ({"tains": []}, "spec.tains", "not a field"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_its_field(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(**fields)
    assert refused.value.field == field
    assert words in refused.value.message
    assert refused.value.hint or field in ("spec.taints", "spec.type", "spec.cost")


def test_a_misspelt_resource_of_overcommitment_is_recognised() -> None:
    with pytest.raises(InvalidInput) as refused:
        read(overcommit={"memroy": 2})
    assert refused.value.hint == "did you mean memory?"


def test_a_taint_is_tolerated_by_its_name_or_by_all_of_it() -> None:
    assert is_tolerated("tenant=blue", ("tenant",))
    assert is_tolerated("tenant=blue", ("tenant=blue",))
    assert not is_tolerated("tenant=blue", ("tenant=red", "blue"))
    assert not is_tolerated("tenant", ("tenant=blue",))


def test_a_node_with_gpus_is_a_gpu_node_unless_people_say_otherwise() -> None:
    assert [read_type(None, True), read_type(None, False), read_type("edge", True)] == ["gpu", "cloud", "edge"]


def test_maintenance_is_begun_with_a_reason_and_ended_without() -> None:
    verb = NODE.verb("maintenance")
    assert verb is not None and verb.act is not None and verb.input is not None
    begun = verb.act({}, verb.input(on=True, reason="new fans"))
    assert begun == {"maintenance": True, "maintenance_reason": "new fans"}
    assert verb.act({}, verb.input(on=False)) == {"maintenance": False, "maintenance_reason": ""}


def test_uncordon_ends_a_cordon_and_a_drain_with_its_window() -> None:
    cordon, drain, uncordon = (NODE.verb(name) for name in ("cordon", "drain", "uncordon"))
    assert cordon and cordon.act and cordon.input and drain and drain.act and drain.input
    assert uncordon is not None and uncordon.act is not None and NODE.verb("return") is None
    drained = drain.act({}, drain.input(reason="fans", not_before=1.0, not_after=2.0))
    assert drained["drain"] and drained["cordoned"] and drained["cordon_reason"] == "drained: fans"
    for before in (drained, cordon.act({}, cordon.input(reason="swap"))):
        after = {**before, **uncordon.act({"name": "n1", "actions": before}, None)}
        assert not [name for name, value in after.items() if value], after


def test_more_given_away_than_a_lowered_ratio_allows_is_said_by_resource() -> None:
    sums = NodeStatus(allocated_cpu=12.0, allocated_memory=GIB)
    report = NodeReport(cpu=4.0, memory=2 * GIB, disk=GIB)
    assert describe_over(sums, report, NodeSpec(overcommit={"cpu": 4.0})) == ""
    assert describe_over(sums, report, NodeSpec(overcommit={"cpu": 2.0})).startswith("12 cpu allocated of 8; ")
    assert describe_over(sums, NodeReport(), NodeSpec()) == ""


@pytest.mark.parametrize(
    ("verb", "given", "field"),
    [
        ("cordon", {"reason": "x" * 201}, "input.reason"),
        ("drain", {"reason": "x" * 201}, "input.reason"),
        ("drain", {"not_before": 1e300}, "input.not_before"),
        ("drain", {"not_after": -1.0}, "input.not_after"),
        ("maintenance", {"on": True, "reason": "x" * 201}, "input.reason"),
    ],
)
def test_what_a_node_can_not_keep_is_refused_as_the_verbs_input(verb: str, given: dict[str, Any], field: str) -> None:
    known = NODE.verb(verb)
    assert known is not None and known.input is not None
    with pytest.raises(InvalidInput) as refused:
        read_strict(given, known.input, "input")
    assert refused.value.field == field
