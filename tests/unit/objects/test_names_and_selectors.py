"""Names, labels and selectors: any text is one, or a clear error; what weft writes itself it can read."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_labels, check_name, cut_name
from weft.objects.quantity import format_bytes, parse_bytes, parse_duration
from weft.objects.selector import parse_selector

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
keys = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
plain = keys.filter(lambda key: key not in ("in", "not_in", "notin"))


@example("\U000e0001" * 70)
@given(st.text(max_size=70) | st.from_regex(LABEL, fullmatch=True) | st.from_regex(r"[a-z0-9-]{60,66}\n?"))
def test_a_name_is_a_dns_label_or_refused(text: str) -> None:
    try:
        assert check_name(text) == text
        assert LABEL.fullmatch(text) and len(text.encode()) == len(text) <= 63
    except InvalidInput as error:
        assert not LABEL.fullmatch(text) and error.field == "name" and error.hint and len(error.message) < 200


heads = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
tails = st.sampled_from(["", "-0", "-12", "-r2", "-20261129-063100", "-202611290631", "-clone-1a2b3c"])


@example(
    "weekly-rollup-of-all-sensors-in-building-number-17-x-202611290631",
    "weekly-rollup-of-all-sensors-in-building-number-17-x-202611290632",
    "-0",
    "-0",
)
@given(heads, heads, tails, tails)
def test_names_that_weft_makes_are_names_and_differ_where_their_heads_or_tails_do(
    one: str, other: str, end: str, last: str
) -> None:
    first, second = cut_name(one, end), cut_name(other, last)
    assert check_name(first) == first and first.endswith(end) and first[0] == one[0]
    assert (first == second) == (one + end == other + last)


@given(st.none() | st.integers() | st.lists(st.text()) | st.binary())
def test_what_is_no_text_is_no_name(value: object) -> None:
    try:
        check_name(value)
        raise AssertionError(value)
    except InvalidInput as error:
        assert error.field == "name"


@given(st.dictionaries(keys, keys, max_size=4))
def test_labels_that_are_accepted_can_be_selected_by(labels: dict[str, str]) -> None:
    check_labels(labels)
    for key, value in labels.items():
        for text in (f"{key}={value}", f"{key}=={value}", f"{key} in ({value})", f"{key} in (x, {value} )", key):
            assert parse_selector(text)(labels), text
        for text in (f"{key}!={value}", f"{key} notin ({value})", f"!{key}"):
            assert not parse_selector(text)(labels), text
    assert parse_selector(",".join(f"{key}={value}" for key, value in labels.items()))(labels)


@given(st.text(max_size=40) | st.text(alphabet="ab=!,() in\t", max_size=30))
def test_any_text_is_a_selector_or_a_clear_error(text: str) -> None:
    try:
        assert parse_selector(text, "labels")({"a": "b"}) in (True, False)
    except InvalidInput as error:
        assert error.field == "labels" and error.hint and len(error.message) < 200


@given(st.integers(0, 2**60))
def test_a_size_as_weft_writes_it_reads_as_nearly_the_same(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size)) - size) <= size * 0.34 + 1


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["ms", "s", "m", "h", "d", "w"])), min_size=1, max_size=4)
)
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    total = sum(number * seconds[unit] for number, unit in parts)
    assert abs(parse_duration("".join(f"{number}{unit}" for number, unit in parts)) - total) < 1e-6
