"""Constraints that no node can meet are found, and none that some node meets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.language.amount import read_amount, show_amount
from weft.language.clash import find_clash, refuse_clash
from weft.language.parse import parse
from weft.language.tree import Compare, Either, Every, Exists, Expression, Not, Within, either, every, show
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("zone=a,zone=b", "zone=a", "zone=b"),
        ("memory>8GB,memory<4GB", "memory>8GB", "memory<4GB"),
        ("memory>8GB AND cpu>2 AND memory<=8GB", "memory>8GB", "memory<=8GB"),
        ("zone in (a,b), zone in (c,d)", "zone in (a,b)", "zone in (c,d)"),
        ("zone=a, NOT zone in (a,b)", "zone=a", "zone in (a,b)"),
        ("zone in (a,b), zone!=a, zone!=b", "zone in (a,b)", "zone!=b"),
        ("exists(tpm), NOT exists(tpm)", "exists(tpm)", "exists(tpm)"),
        ("NOT exists(tpm), tpm=2", "exists(tpm)", "tpm=2"),
        ("(zone=a OR zone=b), zone=c", "zone=a", "zone=c"),
        ("(zone=a, zone=b) OR (x>2, x<1)", "zone=a", "zone=b"),
        ("memory=8GB, memory>=8GiB", "memory=8GB", "memory>=8GiB"),
        ("memory<2GB, NOT memory<4GB", "memory<2GB", "memory<4GB"),
        ("zone=a, zone>3", "zone=a", "zone>3"),
        ("NOT (zone!=a OR zone=a)", "zone!=a", "zone=a"),
    ],
)
def test_two_parts_that_clash_are_named_with_their_places(text: str, first: str, second: str) -> None:
    found = find_clash([("", parse(text))])
    assert found is not None
    assert [part.text for part in found] == [first, second]
    for part in found:
        assert text[part.at :].startswith(part.text)
    with pytest.raises(InvalidInput) as told:
        refuse_clash([("", parse(text))], "spec.constraint")
    assert told.value.token == "contradiction"
    assert f"{second} (character {found[1].at + 1})" in told.value.message


@pytest.mark.parametrize(
    "text",
    [
        "zone=a OR zone=b",
        "zone=a, NOT zone=b",
        "memory>=8GB, memory<=8GB",
        "zone in (a,b), zone in (b,c)",
        "memory=1024M, memory=1G",
        "NOT exists(tpm), tpm!=2",
        "NOT memory<4GB, NOT memory>2GB",  # a node that says nothing of its memory
        "gpu=available, gpu=2",
        "(zone=a OR zone=b), (zone=b OR zone=c)",
        "@fast, zone=a",
    ],
)
def test_what_some_node_could_meet_does_not_clash(text: str) -> None:
    assert find_clash([("", parse(text))]) is None


def test_a_clash_with_a_named_constraint_says_which_one_and_points_at_the_spec() -> None:
    with pytest.raises(InvalidInput) as told:
        refuse_clash([("", parse("cpu>2, zone=a")), ("west", parse("zone=b"))], "spec.constraint")
    assert "zone=a (character 8) and zone=b (character 1 of constraint west)" in told.value.message
    assert told.value.details["at"] == 7


def test_many_alternatives_are_let_be_rather_than_looked_through_for_ever() -> None:
    many = ", ".join(f"(a{i}=1 OR a{i}=2)" for i in range(30))
    assert find_clash([("", parse(f"zone=a, zone=b, {many}"))]) is None
    few = ", ".join(f"(a{i}=1 OR a{i}=2)" for i in range(6))
    long = ",".join(f"x<{i}" for i in range(50))
    assert find_clash([("", parse(f"zone=a, zone=b, {few}, {long}"))]) is None


def test_amounts_read_and_show_as_people_write_them() -> None:
    assert read_amount("32GB") == 32e9
    assert read_amount("32 GiB") == 32 * 2**30
    assert read_amount("500m", "cpu") == 0.5
    assert read_amount("500m", "memory") == 500 * 2**20
    assert read_amount("-3") == -3.0
    assert [read_amount(text) for text in ("", "a", "1e9", "nan", "9" * 400, "1.2.3", "9999999P", "1m2")] == [None] * 8
    assert show_amount(16 * 2**30, "memory") == "16.0 GiB"
    assert show_amount(2.5, "cpu") == "2.5"
    assert show_amount(2**30, "cache", "4G") == "1.0 GiB"
    assert show_amount(8, "sriov") == "8"


_values = st.sampled_from(["a", "b", "1", "2", "1.0", "1000", "1KB"])
_numbers = st.sampled_from(["1", "2", "1KB"])
_leaves = st.one_of(
    st.builds(Compare, st.sampled_from("xy"), st.sampled_from(["eq", "neq"]), _values),
    st.builds(Compare, st.sampled_from("xy"), st.sampled_from(["lt", "le", "gt", "ge"]), _numbers),
    st.builds(Within, st.sampled_from("xy"), st.lists(_values, min_size=1, max_size=2).map(tuple), st.booleans()),
    st.builds(Exists, st.sampled_from("xy")),
)
_trees = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(every),
        st.lists(inner, min_size=2, max_size=3).map(either),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


def _holds(tree: Expression, node: dict[str, str]) -> bool:
    """What a constraint means, told once more in the plainest way."""
    if isinstance(tree, Every):
        return all(_holds(part, node) for part in tree.of)
    if isinstance(tree, Either):
        return any(_holds(part, node) for part in tree.of)
    if isinstance(tree, Not):
        return not _holds(tree.of, node)
    if isinstance(tree, Exists):
        return tree.attribute in node
    if isinstance(tree, Within):
        return any(_holds(Compare(tree.attribute, "eq", value), node) for value in tree.values) is tree.inside
    assert isinstance(tree, Compare)
    has = node.get(tree.attribute)
    number, wanted = None if has is None else read_amount(has), read_amount(tree.value)
    if tree.operator in ("eq", "neq"):
        equal = has == tree.value or (number is not None and number == wanted)
        return equal is (tree.operator == "eq")
    if number is None or wanted is None:
        return False
    return {"lt": number < wanted, "le": number <= wanted, "gt": number > wanted, "ge": number >= wanted}[tree.operator]


_node_values = st.sampled_from(["a", "b", "c", "0", "1", "1.5", "2", "3", "1000", "2000"])


@given(_trees, st.dictionaries(st.sampled_from("xy"), _node_values))
@settings(max_examples=examples(300))
def test_nothing_that_a_node_meets_is_said_to_clash(tree: Expression, node: dict[str, str]) -> None:
    if _holds(tree, node):
        assert find_clash([("", parse(show(tree)))]) is None
