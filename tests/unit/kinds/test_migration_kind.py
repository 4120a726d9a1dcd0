"""What ``vm:migrate`` makes of a VM, and what it refuses before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.migration import MigrateInput, make_migration
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.schema import read_strict


def make(spec: dict[str, Any], **given: Any) -> dict[str, Any]:
    vm = {"name": "web", "spec": spec, "status": {"phase": "Running", "node": "n1"}}
    return make_migration(vm, read_strict(given, MigrateInput), "abc")


@pytest.mark.parametrize(
    ("spec", "given", "reason", "remedy"),
    [
        ({"node": "n1"}, {}, "pinned", "--node"),
        ({"node": "n2"}, {"to": "n3"}, "pinned", "--node"),
        ({"gpus": 1}, {}, "gpusStay", "--cold"),
    ],
)
def test_a_vm_that_its_spec_keeps_where_it_is_is_refused_at_once_with_the_remedy(
    spec: dict[str, Any], given: dict[str, Any], reason: str, remedy: str
) -> None:
    with pytest.raises(IllegalTransition) as refused:
        make(spec, **given)
    assert refused.value.token == reason and remedy in refused.value.hint
    assert make(spec, **given, not_before=2e9)["kind"] == "migration"  # it may be otherwise by then


def test_a_vm_moves_to_the_node_that_it_is_bound_to_and_one_with_a_gpu_moves_cold() -> None:
    assert make({"node": "n2"})["spec"]["workload"] == "vm/web"
    assert make({"node": "n2"}, to="n2")["spec"]["to"] == "n2"
    assert make({"gpus": 1}, mode="cold")["spec"]["mode"] == "cold"


@pytest.mark.parametrize("to", ["", "N2", "n 2"])
def test_what_no_node_can_be_called_is_refused(to: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        make({}, to=to)
    assert refused.value.field == "spec.to"


def test_a_time_that_no_calendar_has_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        make({}, not_before=1e300)
    assert refused.value.field == "spec.not_before"
