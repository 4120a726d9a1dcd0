"""Flags derive from the spec: a new field has its own for free, and its own complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click
import msgspec
import pytest

from weft.cli.command.flag_names import name_flags
from weft.cli.command.flags import FORMS, flag_fields, flag_name, make_flags, read_assignments, read_flags
from weft.cli.verbs.deployment import autoscale_command
from weft.kinds.deployment import DEPLOYMENT
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.errors import InvalidInput
from weft.objects.schema import find_problems, read_strict

VM = BY_NAME["vm"]


def flags_of(kind: Kind) -> set[str]:
    return {name for option in make_flags(kind) for name in [*option.opts, *option.secondary_opts]}


def test_a_vm_has_the_promised_flags() -> None:
    promised = "image cpu memory disk network publish volume strategy node user-data restart hold no-hold machine grace"
    assert {f"--{flag}" for flag in promised.split()} <= flags_of(VM)
    assert not {"--run", "--restart-generation"} & flags_of(VM)


def test_every_field_of_every_kind_has_a_flag() -> None:
    for kind in KINDS:
        assert len(make_flags(kind)) == len(flag_fields(kind))
        assert all(f"--{flag_name(doc)}" in flags_of(kind) for doc in flag_fields(kind))


def test_every_form_that_help_shows_is_of_a_field() -> None:
    fields = {doc.path.rpartition(".")[2] for kind in KINDS for doc in flag_fields(kind)}
    assert set(FORMS) <= fields


def test_a_field_that_is_new_has_a_flag_at_once() -> None:
    class Spec(msgspec.Struct):
        weights: dict[str, str] = {}
        sizes: list[int] = []
        fast: bool = True

    made = msgspec.structs.replace(BY_NAME["project"], name="thing", spec=Spec)
    assert flags_of(made) == {"--weights", "--size", "--sizes", "--fast", "--no-fast"}
    given = {"spec__weights": ("a=1,b=2",), "spec__sizes": ("1,2", "3"), "spec__fast": False}
    assert read_flags(made, given, {}) == {"weights": {"a": "1", "b": "2"}, "sizes": [1, 2, 3], "fast": False}


@pytest.mark.parametrize("given", [("wget -qO- 'http://127.0.0.1:8080/'",), ("wget", "-qO-", "http://127.0.0.1:8080/")])
def test_a_command_is_given_as_one_text_or_word_by_word(given: tuple[str, ...]) -> None:
    spec = read_flags(BY_NAME["container"], {"spec__health_check__command": given}, {})
    assert spec["health_check"]["command"] == ["wget", "-qO-", "http://127.0.0.1:8080/"]
    with pytest.raises(click.UsageError, match=r"--health-check-command: .* can't be split"):
        read_flags(BY_NAME["container"], {"spec__health_check__command": ("echo 'open",)}, {})


def test_flags_win_over_what_is_there_and_leave_the_rest() -> None:
    spec = {"image": "tiny", "cpu": 1, "publish": ["80:80"]}
    given = {"spec__cpu": "2", "spec__publish": ("8080:80", "8443:443"), "spec__memory": None}
    assert read_flags(VM, given, spec) == {"image": "tiny", "cpu": "2", "publish": ["8080:80", "8443:443"]}
    assert spec["cpu"] == 1


def test_nothing_takes_back_what_may_be_unset() -> None:
    assert read_flags(BY_NAME["project"], {"spec__strategy": ""}, {"strategy": "@gold"}) == {"strategy": None}
    assert read_flags(BY_NAME["node"], {"spec__cost": ""}, {"cost": 2.4}) == {"cost": None}
    assert read_flags(VM, {"spec__image": ""}, {}) == {"image": ""}  # must be there: the field complains itself


@pytest.mark.parametrize(("kind", "way"), [("vm", ()), ("job", ("task",))])
def test_a_priority_is_a_number_or_a_class_and_takes_the_place_of_the_other(kind: str, way: tuple[str, ...]) -> None:
    def read(value: str, **lease: object) -> object:
        parameter = "__".join(("spec", *way, "lease__priority"))
        spec: dict[str, object] = {"lease": lease} if not way else {way[0]: {"lease": lease}}
        made = read_flags(BY_NAME[kind], {parameter: value}, spec)
        return (made[way[0]] if way else made)["lease"]

    assert read("7", priority_class="urgent") == {"priority": 7, "priority_class": None}
    assert read("-7") == {"priority": -7, "priority_class": None}
    assert read("urgent", priority=7, mode="immediate") == {
        "priority": 0,
        "priority_class": "urgent",
        "mode": "immediate",
    }
    assert not {"--priority-class", "--lease-priority-class"} & flags_of(BY_NAME[kind])


def test_a_value_that_begins_with_a_minus_gets_the_field_s_own_complaint() -> None:
    spec = read_flags(VM, {"spec__memory": "-5G"}, {"image": "tiny"})
    _, problems = find_problems(spec, VM.spec)
    assert [problem.message for problem in problems] == ["spec.memory: -5G is negative"]


def test_what_is_no_number_is_no_number_by_its_name_either() -> None:
    given = read_flags(BY_NAME["node"], {"spec__cost": "nan"}, {})
    _, problems = find_problems(given, BY_NAME["node"].spec)
    assert given == {"cost": "nan"} and not problems  # the types say it, at the door
    with pytest.raises(InvalidInput, match=r"spec\.cost: expected a number, got text"):
        read_strict(given, BY_NAME["node"].spec)


def test_user_data_is_read_from_a_file_or_is_the_script_itself(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\ntrue\n")
    assert read_flags(VM, {"spec__user_data": str(tmp_path / "run.sh")}, {}) == {"user_data": "#!/bin/sh\ntrue\n"}
    assert read_flags(VM, {"spec__user_data": "#!/bin/sh\nfalse"}, {}) == {"user_data": "#!/bin/sh\nfalse"}
    with pytest.raises(Exception, match="no such file"):
        read_flags(VM, {"spec__user_data": str(tmp_path / "none")}, {})


@pytest.mark.parametrize("text", ["memory=8G", "mem=8G", "--memory=8G", "ram=8G", "memo=8G"])
def test_a_field_is_known_by_its_beginning_and_by_what_others_call_it(text: str) -> None:
    assert read_assignments(VM, [text]) == {"memory": "8G"}


def test_a_field_that_could_be_several_or_none_is_refused() -> None:
    for text in ("m=8G", "memry=8G", "memory", "=8G"):
        with pytest.raises(click.UsageError, match="write FIELD=VALUE"):
            read_assignments(VM, [text])


def test_an_error_about_the_scale_of_a_deployment_names_its_options() -> None:
    command = autoscale_command("autoscale", cast(Any, None), DEPLOYMENT)
    problem = InvalidInput("spec.autoscale.min: must be at most max", field="spec.autoscale.min")
    assert name_flags(click.Context(command), problem).message == "--min: must be at most max"
    typed = click.Command("create", params=list(make_flags(VM))).make_context("create", ["--duration", "1h", "--hold"])
    problem = InvalidInput("spec.lease: not in a reservation", field="spec.lease", hint="spec.lease or spec.gang")
    named = name_flags(typed, problem)
    assert (named.message, named.hint) == ("--duration: not in a reservation", "--duration or --gang")
    problem = InvalidInput("input.tone is not a field", field="input.tone")
    assert name_flags(click.Context(command), problem).message == "tone is not a field"
