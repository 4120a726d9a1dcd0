"""What can be converted, when, and what either side may do meanwhile."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.kinds.conversion import CONVERSION, ConversionSpec, check_conversion
from weft.kinds.parts.convert_verb import ConvertInput, make_conversion
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.schema import read_strict


def container(**status: Any) -> dict[str, Any]:
    spec = {"run": "run", "hold": False}
    return {"kind": "container", "name": "web", "spec": spec, "status": {"phase": "Running", **status}}


def test_the_verb_makes_a_conversion_with_a_name_of_its_own() -> None:
    made = make_conversion(container(), read_strict({"to": "vm", "memory": "1G"}, ConvertInput), "abc12")
    assert (made["kind"], made["name"]) == ("conversion", "web-abc12")
    spec = read_strict(made["spec"], ConversionSpec)
    check_conversion(spec)
    assert (spec.workload, spec.to, spec.memory, spec.timeout_seconds) == ("container/web", "vm", 2**30, 600.0)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"phase": "Suspended"}, "Suspended"),
        ({"phase": "Unknown"}, "Unknown"),
        ({"migration": "web-1"}, "migration/web-1"),
        ({"conversion": "web-2"}, "conversion/web-2"),
    ],
)
def test_one_that_is_no_state_to_be_converted_is_refused_with_a_remedy(status: dict[str, str], said: str) -> None:
    with pytest.raises(IllegalTransition, match=said) as refused:
        make_conversion(container(**status), ConvertInput(to="vm"), "abc12")
    assert refused.value.hint


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"workload": "job/x", "to": "vm"}, "spec.workload"),
        ({"workload": "vm/", "to": "container"}, "spec.workload"),
        ({"workload": "vm/web", "to": "vm"}, "spec.to"),
        ({"workload": "vm/web", "to": "container", "disk": 1}, "spec.disk"),
        ({"workload": "vm/web", "to": "container", "timeout_seconds": 0}, "spec.timeout_seconds"),
    ],
)
def test_a_conversion_that_makes_no_sense_is_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_conversion(ConversionSpec(**given))
    assert refused.value.field == field


def act(obj: dict[str, Any], verb: str) -> Any:
    found = BY_NAME[obj["kind"]].verb(verb)
    assert found is not None
    change = found.change or found.act
    assert change is not None
    return change(obj, found.input() if found.input is not None else None)


def test_the_old_side_runs_no_more_and_the_new_side_does_as_it_is_told() -> None:
    old = container(phase="Stopped", conversion="c", converts_to="vm/web")
    for verb in ("start", "restart"):
        with pytest.raises(
            IllegalTransition, match="container/web is handed over to vm/web by conversion/c"
        ) as refused:
            act(old, verb)
        assert refused.value.hint == "weft conversion confirm c, or: weft conversion undo c"
    new = {**container(phase="Stopped", conversion="c"), "kind": "vm"}
    assert act(new, "start")["run"] == "run"


@pytest.mark.parametrize("kind", ["vm", "container"])
def test_neither_side_is_changed_or_deleted_meanwhile(kind: str) -> None:
    guard = BY_NAME[kind].admission.write_guard
    assert guard is not None

    def stored(**status: str) -> Envelope:
        return Envelope(kind=kind, name="web", uid="u", status=msgspec.Raw(msgspec.json.encode(status)))

    guard(stored())
    with pytest.raises(IllegalTransition, match=f"{kind}/web is being made by conversion/c"):
        guard(stored(conversion="c"))
    with pytest.raises(IllegalTransition, match=f"{kind}/web is handed over to vm/new by conversion/c"):
        guard(stored(conversion="c", converts_to="vm/new"))


ACTIONS = {"confirm": "confirmed", "undo": "undo"}


@pytest.mark.parametrize(
    ("verb", "phase", "asked", "legal"),
    [
        ("confirm", "Starting", {}, True),
        ("confirm", "Confirmed", {"confirmed": True}, True),
        ("confirm", "AwaitingConfirmation", {"undo": True}, False),
        ("confirm", "Undoing", {}, False),
        ("confirm", "Failed", {}, False),
        ("undo", "Pending", {}, True),
        ("undo", "AwaitingConfirmation", {"confirmed": True}, True),
        ("undo", "Undone", {}, True),
        ("undo", "Failed", {}, True),
        ("undo", "Confirmed", {}, False),
    ],
)
def test_confirm_and_undo_are_legal_until_the_other_is_carried_out(
    verb: str, phase: str, asked: dict[str, bool], legal: bool
) -> None:
    spec = {"workload": "container/web", "to": "vm"}
    obj = {
        "kind": "conversion",
        "name": "c",
        "spec": spec,
        "actions": asked,
        "status": {"phase": phase, "new": "vm/web"},
    }
    if not legal:
        with pytest.raises(IllegalTransition):
            act(obj, verb)
        return
    assert act(obj, verb) == ({} if phase in ("Undone", "Failed") else {ACTIONS[verb]: True})


def test_its_row_says_the_way_and_how_long_nothing_ran() -> None:
    obj = {
        "kind": "conversion",
        "name": "c",
        "spec": {"workload": "container/web", "to": "vm", "new_name": "big"},
        "status": {"phase": "Confirmed", "stopped_at": 10.0, "running_at": 13.25},
    }
    row = {column.title: column.value(obj) for column in CONVERSION.display.columns}
    assert (row["CONVERSION"], row["PAUSE"]) == ("container/web → vm/big", "3.2 s")
