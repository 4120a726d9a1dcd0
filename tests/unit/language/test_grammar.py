"""Constraints as people write them: what they mean, how they are shown again, and where it hurts when they are wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.language.complaint import draw_caret
from weft.language.form import make_form, read_form
from weft.language.parse import DEEPEST, parse, read_expression
from weft.language.tree import (
    Compare,
    Either,
    Every,
    Exists,
    Expression,
    Named,
    Not,
    Within,
    either,
    every,
    leaves,
    replace_named,
    show,
)
from weft.objects.errors import InvalidInput

A, B, C = Compare("a", "eq", "1"), Compare("b", "gt", "2"), Compare("c", "neq", "x")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("storage=nvme,memory>=32GB", Every((Compare("storage", "eq", "nvme"), Compare("memory", "ge", "32GB")))),
        ("gpu.memory>=8GB", Compare("gpu.memory", "ge", "8GB")),
        ("zone in (a,b)", Within("zone", ("a", "b"))),
        ("zone not_in (a, b)", Within("zone", ("a", "b"), False)),
        ("zone NOT IN (a)", Within("zone", ("a",), False)),
        ("exists(tpm)", Exists("tpm")),
        ("not Exists( tpm )", Not(Exists("tpm"))),
        ("a=1 OR b>2 AND c!=x", Either((A, Every((B, C))))),
        ("(a==1 or b gt 2) and c neq x", Every((Either((A, B)), C))),
        ("a eq 1, b > 2, (c != x)", Every((A, B, C))),
        ("NOT a=1, b>2", Every((Not(A), B))),
        ("memory >= 32 GB", Compare("memory", "ge", "32GB")),
        ("cpu>=500m", Compare("cpu", "ge", "500m")),
        ('"and"="a \\"b\\"", @fast-disk', Every((Compare("and", "eq", 'a "b"'), Named("fast-disk")))),
        ("exists=yes", Compare("exists", "eq", "yes")),
    ],
)
def test_what_is_written_means(text: str, tree: Expression) -> None:
    assert read_expression(text) == tree
    assert read_expression(show(tree)) == tree


@pytest.mark.parametrize(
    ("text", "at", "fact", "hint"),
    [
        ("storage=nvme,memory=>32GB", 19, "'=>' is not an operator", "did you mean >=?"),
        ("a=1 && b=2", 4, "'&&' is not an operator", "did you mean AND?"),
        ("memory gte 3", 7, "'gte' is not an operator", "did you mean ge?"),
        ("zone inn (a)", 5, "'inn' is not an operator", "did you mean in?"),
        ("memory>big", 7, "> compares numbers, and 'big' is not a number", "write a number or a size like 32GB"),
        ("a=1,", 4, "an attribute is missing", None),
        ("a=", 2, "the value after = is missing", None),
        ("storage", 7, "an operator is missing", "compare it: storage=VALUE"),
        ("(a=1", 0, "this parenthesis isn't closed", None),
        ("a=1)", 3, "this parenthesis was never opened", None),
        ("a=1 adn b=2", 4, "'adn' can't be used here", "did you mean AND?"),
        ("zone in a", 8, "values in parentheses must follow in", "zone in (a,b)"),
        ("zone='a", 5, "this quotation isn't closed", "close it"),
        ("zone=ü", 5, "'ü' can't be used here", "quotation marks"),
        ("", 0, "the expression is empty", "storage=nvme"),
        ("@", 1, "the name of a constraint must follow @", "weft constraint list"),
        ("a=1," * 1100, 4096, "longer than 4096 characters", None),
        ("(" * (DEEPEST + 1), DEEPEST, "nested deeper than 32", None),
    ],
)
def test_an_error_points_at_the_character(text: str, at: int, fact: str, hint: str | None) -> None:
    with pytest.raises(InvalidInput) as told:
        parse(text, "spec.constraint")
    assert told.value.field == "spec.constraint"
    assert told.value.details["at"] == at
    assert f"character {at + 1}: {fact}" in told.value.message
    assert hint is None or hint in (told.value.hint or "")


def test_a_caret_stands_below_the_place_even_in_a_long_text() -> None:
    for text, at in (("memory=>32GB", 6), ("a=1," * 60 + "b=>2", 241)):
        shown, carets = draw_caret(text, at, 2)
        assert shown[carets.index("^") :].startswith("=>")
        assert len(shown) < 80


def test_leaves_know_where_they_stand() -> None:
    parsed = parse("NOT (a=1, zone in (x, y)) OR exists(tpm)")
    assert [parsed.text[at : at + length] for at, length in parsed.spans] == ["a=1", "zone in (x, y)", "exists(tpm)"]
    assert len(list(leaves(parsed.tree))) == len(parsed.spans)


def test_a_name_is_replaced_by_what_it_stands_for() -> None:
    tree = read_expression("@fast, NOT @slow")
    found = {"fast": every([A, B]), "slow": either([B, C])}
    assert replace_named(tree, found.__getitem__) == Every((A, B, Not(Either((B, C)))))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"attribute": "memory", "op": "gt", "value": "32GB"}, "memory>32GB"),
        ({"attribute": "cpu", "op": ">=", "value": 4}, "cpu>=4"),
        ({"op": "and", "of": [{"attribute": "tpm", "op": "exists"}, "zone=a or zone=b"]}, "exists(tpm) AND (zone=a OR zone=b)"),
        ({"op": "not", "of": {"attribute": "zone", "op": "not_in", "values": ["a", 3]}}, "NOT zone not_in (a,3)"),
        (
            {"LogicalOperator": "OR", "SubExpressions": [
                {"Left": "a", "Operator": "eq", "Right": 1, "SubExpressions": None, "LogicalOperator": ""},
                {"Left": "b", "Operator": "lt", "Right": 2.5},
            ]},
            "a=1 OR b<2.5",
        ),
        ({"constraint": "fast-disk"}, "@fast-disk"),
    ],
)  # fmt: skip
def test_the_json_form_says_the_same(form: Any, text: str) -> None:
    assert show(read_form(form)) == text


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"attribute": "a", "op": "gtt", "value": 1}, "c.op: 'gtt' is not an operator"),
        ({"op": "and", "of": [{"op": "exists"}]}, "c.of[0].attribute is missing"),
        ({"op": "and", "of": []}, "is missing"),
        ({"attribute": "a", "op": "eq"}, "c.value is missing"),
        ({"attribute": "a", "op": "in", "value": "b"}, "c.value must be a list"),
        ({"attribute": "a", "op": "eq", "value": {}}, "c.value must be text or a number"),
        ({"attribute": "a", "op": "eq", "wert": 1}, "c.wert is not a field"),
        (7, "c must be text or a set of fields"),
        ({"op": "not", "of": ["a=1", "b=2"]}, "not takes one part"),
        ({"attribute": "a", "op": "lt", "value": "b"}, "compares numbers"),
    ],
)
def test_a_wrong_json_form_is_refused_at_its_path(form: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=r"^c") as told:
        read_form(form, "c")
    assert said in told.value.message


def test_a_form_without_end_is_refused() -> None:
    form: dict[str, Any] = {"attribute": "a", "op": "exists"}
    for _ in range(5000):
        form = {"op": "not", "of": [form]}
    with pytest.raises(InvalidInput, match="nested deeper"):
        read_form(form)


_words = st.one_of(st.sampled_from(["zone", "and", "IN", "not", "exists", "gpu.memory", "a b", '"', "\\", "'", "ü", "x=y"]),
                   st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=8))  # fmt: skip
_numbers = st.sampled_from(["1", "2.5", "32GB", "500M", "-3", "1.5GiB"])
_leaves = st.one_of(
    st.builds(Compare, _words, st.sampled_from(["eq", "neq"]), _words),
    st.builds(Compare, _words, st.sampled_from(["lt", "le", "gt", "ge"]), _numbers),
    st.builds(Within, _words, st.lists(_words, min_size=1, max_size=3).map(tuple), st.booleans()),
    st.builds(Exists, _words),
    st.builds(Named, st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(every),
        st.lists(inner, min_size=2, max_size=3).map(either),
        st.builds(Not, inner),
    ),
    max_leaves=12,
)


@given(_trees)
@settings(max_examples=examples(150))
def test_a_tree_comes_back_from_its_text_and_its_json_form(tree: Expression) -> None:
    text = show(tree)
    parsed = parse(text)
    assert parsed.tree == tree
    assert hash(parsed.tree) == hash(tree)
    assert show(parsed.tree) == text
    assert read_form(json.loads(json.dumps(make_form(tree)))) == tree


_bits = st.sampled_from(["zone", "=", "==", ">=", "!", "(", ")", ",", "and", "or", "not", "in", "not_in", "exists", "@", "32GB",
                         " ", '"', "'", "\\", "\x00", "memory", "é", "=>", "~", "1e9", "…"])  # fmt: skip


@given(
    st.one_of(
        st.text(max_size=60), st.lists(_bits, max_size=20).map("".join), st.lists(_bits, max_size=20).map(" ".join)
    )
)
@settings(max_examples=examples(300))
def test_hostile_text_raises_nothing_but_invalid_input(text: str) -> None:
    try:
        tree = read_expression(text)
    except InvalidInput as problem:
        draw_caret(text, problem.details["at"], problem.details["length"])
    else:
        assert read_expression(show(tree)) == tree


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["attribute", "op", "value", "of", "Left", "constraint", "x"]), inner, max_size=4),
        st.builds(lambda op, of: {"op": op, "of": of}, st.sampled_from(["and", "or", "not", "in", 7]), inner),
    ),
    max_leaves=12,
)  # fmt: skip


@given(_json)
@settings(max_examples=examples(200))
def test_hostile_forms_raise_nothing_but_invalid_input(raw: Any) -> None:
    try:
        tree = read_form(raw)
    except InvalidInput:
        return
    assert read_form(make_form(tree)) == tree
