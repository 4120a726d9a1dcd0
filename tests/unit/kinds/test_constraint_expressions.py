"""Wishes by expression at admission: one spelling is kept, and whatever is written, only InvalidInput comes of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.kinds.constraint import (
    ConstraintSpec,
    check_constraint,
    check_expressions,
    names_preferred,
    names_required,
    read_preference,
    refuse_clash_with_named,
    show_preference,
)
from weft.language.parse import read_expression
from weft.language.tree import Preference
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("zone=a", "zone=a"),
        (" zone=a ; weight = 0.25;priority=3 ", "zone=a;weight=0.25;priority=3"),
        ("zone=a;priority=0;weight=0.5", "zone=a"),
        ({"expression": "zone=a", "weight": 1}, "zone=a;weight=1.0"),
        ({"expression": {"attribute": "zone", "op": "eq", "value": "a"}, "priority": "7"}, "zone=a;priority=7"),
        ({"attribute": "zone", "op": "exists"}, "exists(zone)"),
        ('name="a;weight=1"', 'name="a;weight=1"'),
    ],
)
def test_a_preference_is_kept_in_one_spelling(written: Any, kept: str) -> None:
    assert show_preference(read_preference(written, "p")) == kept
    assert check_expressions(None, [written]) == (None, [kept])


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("zone=a;weight=2", "p: weight '2' is not a number from 0 to 1"),
        ("zone=a;weight=nan", "p: weight 'nan' is not a number from 0 to 1"),
        ("zone=a;priority=1.5", "p: priority '1.5' is not a whole number from 0 to 100"),
        ({"expression": "zone=a", "priority": True}, "p: priority is not a whole number"),
        ({"expression": "zone=a", "priority": 10**5000}, "p: priority is not a whole number"),
        ("zone=a;wieght=1", "p: 'wieght' is neither weight nor priority"),
        ("zone=a;weight=1;weight=1", "p: 'weight' is given twice"),
        ({"expression": "zone=a", "wieght": 1}, "p.wieght is not a field"),
        ("zone=a;", "p: character 7: ';' can't be used here"),
        (";weight=1", "p: character 1: the expression is empty"),
    ],
)
def test_a_wrong_preference_says_what_is_wrong(written: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as told:
        read_preference(written, "p")
    assert told.value.message.startswith(said)
    assert told.value.hint or "not a field" in said or "character" in said  # what to write instead


def test_what_can_never_hold_or_is_too_much_is_refused() -> None:
    for constraint, prefer in (
        ("zone=a,zone=b", []),
        (None, ["x>2,x<1"]),
        (None, ["zone=a"] * 17),
        (None, [",".join(f"attribute-{n}=1" for n in range(60))] * 5),
        (",".join(f"@c{n}" for n in range(17)), []),
    ):
        with pytest.raises(InvalidInput):
            check_expressions(constraint, prefer)
    assert check_expressions("  ", []) == (None, [])


def test_named_constraints_are_found_and_must_agree_with_who_names_them() -> None:
    assert names_required("@a AND (zone=b OR NOT @b)") == ["a", "b"]
    assert names_preferred(["@a;weight=1", "zone=b", "@a OR @c"]) == ["a", "c"]
    west, soft = ConstraintSpec(expression="zone=west"), ConstraintSpec(expression="zone=west", soft=True)
    with pytest.raises(InvalidInput, match="zone=west \\(character 1 of constraint w\\)"):
        refuse_clash_with_named("@w,zone=east", {"w": west})
    refuse_clash_with_named("@w,zone=east", {"w": soft})
    refuse_clash_with_named("@w OR zone=east", {"w": west})
    refuse_clash_with_named("@w,zone=east", {})


def test_a_constraint_is_kept_as_text_and_names_no_other() -> None:
    spec = ConstraintSpec(expression={"op": "and", "of": ["zone=a", {"attribute": "memory", "op": "gt", "value": 5}]})
    check_constraint(spec)
    assert spec.expression == "zone=a AND memory>5"
    with pytest.raises(InvalidInput, match="a constraint can't name another constraint"):
        check_constraint(ConstraintSpec(expression="zone=a,@b"))


def test_the_json_form_may_come_as_text_where_nothing_else_can() -> None:
    written = '{"op": "and", "of": ["zone=a", {"attribute": "memory", "op": "gt", "value": 5}]}'
    assert check_expressions(written, ['{"expression": "zone=b", "weight": 0.2}']) == (
        "zone=a AND memory>5",
        ["zone=b;weight=0.2"],
    )
    for broken in ('{"op": "and"', "{" * 5000, '{"op": "between"}', '{"attribute": "a\udcff"}'):
        with pytest.raises(InvalidInput) as told:
            check_expressions(broken, [])
        assert told.value.message.startswith("spec.constraint") and told.value.hint


_bits = st.sampled_from(
    ["zone=a", ";weight=", ";priority=", "0.5", "7", ";", "@a", " OR ", '"', "\x00", "nan", "-1", "=", ","]
)


@given(
    st.one_of(
        st.lists(_bits, max_size=8).map("".join),
        st.dictionaries(
            st.sampled_from(["expression", "weight", "priority", "x", "attribute", "op"]),
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just({"a": 1})),
        ),
    )
)
@settings(max_examples=examples(200))
def test_hostile_preferences_raise_nothing_but_invalid_input(raw: Any) -> None:
    try:
        preference = read_preference(raw, "p")
    except InvalidInput:
        return
    assert read_preference(show_preference(preference), "p") == preference


@given(st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=examples(50))
def test_a_preference_comes_back_from_its_text(weight: float, priority: int) -> None:
    preference = Preference(read_expression('name="a;b" OR zone in (x,y)'), weight, priority)
    assert read_preference(show_preference(preference), "p") == preference
