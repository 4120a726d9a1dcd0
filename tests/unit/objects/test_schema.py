from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from weft.objects.errors import InvalidInput, UnknownField
from weft.objects.schema import describe_fields, field, find_problems, read_strict
from weft.objects.spec_change import plan_change


class Part(msgspec.Struct):
    size: Annotated[int, field("How big", quantity="bytes", change="never")]
    note: Annotated[str, field("Words", max_length=5)] = ""


class Whole(msgspec.Struct):
    cpu: Annotated[float, field("Cores", quantity="cpu", change="restart")]
    parts: list[Part] = []
    by_name: dict[str, Part] = {}
    maybe: Annotated[str | None, field("Perhaps")] = None
    kind: Annotated[Literal["color", "grey"] | None, field("Of it")] = None


def test_a_field_of_a_whole_body_has_no_dot_before_its_name() -> None:
    with pytest.raises(InvalidInput) as caught:
        read_strict({"cpu": 1, "maybe": 7}, Whole, "")
    assert caught.value.field == "maybe" and str(caught.value).startswith("maybe: expected")


def test_quantities_become_numbers_at_any_depth() -> None:
    whole = read_strict({"cpu": "500m", "parts": [{"size": "1M"}], "by_name": {"a": {"size": "2K"}}}, Whole)
    assert (whole.cpu, whole.parts[0].size, whole.by_name["a"].size) == (0.5, 2**20, 2048)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"cpu": 1, "cpuu": 2}, "spec.cpuu"),
        ({"cpu": 1, "parts": [{"size": 1, "sise": 1}]}, "spec.parts[0].sise"),
        ({"cpu": 1, "by_name": {"a": {"size": 1, "x": 1}}}, "spec.by_name.a.x"),
    ],
)
def test_an_unknown_field_is_refused_with_its_path(raw: dict[str, object], path: str) -> None:
    with pytest.raises(UnknownField) as caught:
        read_strict(raw, Whole)
    assert caught.value.field == path


def test_a_slip_of_the_pen_gets_a_suggestion() -> None:
    with pytest.raises(UnknownField) as caught:
        read_strict({"cpu": 1, "prats": []}, Whole)
    assert caught.value.hint == "did you mean spec.parts?"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({}, "spec.cpu"),
        ({"cpu": "x"}, "spec.cpu"),
        ({"cpu": 1, "parts": {}}, "spec.parts"),
        (3, "spec"),
        (None, "spec"),
        ({"cpu": 1, "parts": [3]}, "spec.parts[0]"),
        ({"cpu": 1, "parts": [{"size": 1, "note": "toolong"}]}, "spec.parts[0].note"),
        ({"cpu": None}, "spec.cpu"),
        ({"cpu": 1, "maybe": 3}, "spec.maybe"),
    ],
)
def test_every_complaint_names_its_field(raw: object, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_strict(raw, Whole)
    assert caught.value.field == path
    assert path in caught.value.message


def test_all_problems_are_told_at_once() -> None:
    _, problems = find_problems({"cpuu": 1, "parts": [{"size": "-1"}]}, Whole)
    assert [p.field for p in problems] == ["spec.cpuu", "spec.parts[0].size", "spec.cpu"]


def test_the_change_table_knows_what_a_change_costs() -> None:
    changes = plan_change({"cpu": 1, "parts": [{"size": 1}]}, {"cpu": 2, "parts": [{"size": 1}]}, Whole)
    assert [(c.path, c.mode) for c in changes] == [("spec.cpu", "restart")]
    assert plan_change({"cpu": 1}, {"cpu": 1}, Whole) == []


def test_fields_are_described_for_people() -> None:
    docs = {d.path: d for d in describe_fields(Whole)}
    assert docs["spec.cpu"].type == "cores"
    assert docs["spec.parts[].size"].change == "never"


@pytest.mark.parametrize(
    ("written", "told", "hint"),
    [
        ("Colour", "spec.kind: 'Colour' is none of color, grey", "did you mean color?"),
        ("x", "spec.kind: 'x' is none of color, grey", None),
        (["grey"], "spec.kind: expected one of color, grey, got a list", None),
    ],
)
def test_a_word_that_a_field_does_not_take_is_told_with_those_it_takes(
    written: object, told: str, hint: str | None
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_strict({"cpu": 1, "kind": written}, Whole)
    assert (caught.value.message, caught.value.hint) == (told, hint)
    assert caught.value.field == "spec.kind"


def test_a_wrong_type_is_told_in_words_that_people_use() -> None:
    with pytest.raises(InvalidInput, match=r"^spec\.maybe: expected text, got a whole number$"):
        read_strict({"cpu": 1, "maybe": 3}, Whole)
