"""What ``vm:migrate`` makes of a VM, and what it refuses before anything is made."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.migration import MIGRATION, MigrationSpec, check_migration
from weft.kinds.parts.migration.verb import MigrateContainerInput, MigrateInput, make_migration
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.lifecycle import describe_phase
from weft.objects.schema import read_strict


def make(spec: dict[str, Any], **given: Any) -> dict[str, Any]:
    vm = {"kind": "vm", "name": "web", "spec": spec, "status": {"phase": "Running", "node": "n1"}}
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


@pytest.mark.parametrize(
    ("days", "lasts", "field"), [(30, 0.5, ""), (400, 0.5, "spec.not_before"), (1, 500, "spec.not_after")]
)
def test_a_window_is_not_so_far_ahead_that_capacity_would_be_held_for_months(
    days: float, lasts: float, field: str
) -> None:
    now, day = 1_800_000_000.0, 86_400.0
    start = now + days * day
    spec = MigrationSpec(workload="vm/web", not_before=start, not_after=start + lasts * day)
    check = MIGRATION.admission.check_times
    assert check is not None
    if not field:
        check(spec, now)
        return
    with pytest.raises(InvalidInput, match="more than 31 days ahead") as refused:
        check(spec, now)
    assert refused.value.field == field


@pytest.mark.parametrize("mode", ["live", "cold"])
@pytest.mark.parametrize("phase", ["Pending", "Failed", "Suspended", "Stopped", "Shutdown"])
def test_only_what_runs_moves_and_cold_what_is_stopped(phase: str, mode: str) -> None:
    vm = {"kind": "vm", "name": "web", "spec": {}, "status": {"phase": phase, "node": "n1"}}
    if (phase, mode) == ("Stopped", "cold"):
        assert make_migration(vm, MigrateInput(mode="cold"), "abc")["kind"] == "migration"
        return
    if (phase, mode) == ("Suspended", "cold"):
        assert make_migration(vm, MigrateInput(mode="cold"), "abc")["spec"]["mode"] == "saved"
        return
    with pytest.raises(IllegalTransition, match=f"is {describe_phase(phase)}: it can't migrate") as refused:
        make_migration(vm, MigrateInput(mode=mode), "abc")  # type: ignore[arg-type]
    assert ("--cold" in refused.value.hint) is (phase in ("Stopped", "Suspended"))


def test_it_moves_neither_to_where_it_is_nor_twice_at_once() -> None:
    with pytest.raises(IllegalTransition, match="is on n1 already"):
        make({}, to="n1")
    vm = {"kind": "vm", "name": "web", "spec": {}, "status": {"phase": "Migrate", "node": "n1", "migration": "web-1"}}
    with pytest.raises(IllegalTransition, match="migration/web-1") as refused:
        make_migration(vm, MigrateInput(), "abc")
    assert refused.value.token == "alreadyMigrating"


def make_of_container(spec: dict[str, Any], status: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    container = {"kind": "container", "name": "web", "spec": spec, "status": {"phase": "Running", "node": "n1"}}
    container["status"] |= status or {}
    return make_migration(container, read_strict(given, MigrateContainerInput), "abc")


def test_a_container_moves_as_well_as_it_can_unless_people_say_how() -> None:
    made = make_of_container({}, to="n2")["spec"]
    assert (made["workload"], made["mode"], made["to"]) == ("container/web", "best", "n2")
    for mode in ("live", "cold"):
        assert make_of_container({}, mode=mode)["spec"]["mode"] == mode
    for mode in ("storage",):
        with pytest.raises(InvalidInput):
            make_of_container({}, mode=mode)
        with pytest.raises(InvalidInput) as refused:
            check_migration(MigrationSpec(workload="container/web", mode=mode, pool="p"))
        assert refused.value.field == "spec.mode" and "cold" in refused.value.hint


def test_what_runs_once_and_what_is_being_converted_stays_where_it_is() -> None:
    with pytest.raises(IllegalTransition) as refused:
        make_of_container({"once": True})
    assert refused.value.token == "runsOnce" and "weft wait container/web" in refused.value.hint
    with pytest.raises(IllegalTransition) as refused:
        make_of_container({}, {"conversion": "web-1"})
    assert refused.value.token == "isConverting" and "undo" in refused.value.hint
