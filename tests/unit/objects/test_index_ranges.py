"""Sets of indexes as text: read strictly, written shortly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.objects.errors import InvalidInput
from weft.objects.index_ranges import format_indexes, parse_indexes, read_indexes


@given(st.sets(st.integers(0, 300)))
def test_what_was_written_is_read_again(indexes: set[int]) -> None:
    text = format_indexes(indexes)
    assert read_indexes(text) == sorted(indexes)
    if indexes:
        assert parse_indexes(text, "spec.array", most=301) == sorted(indexes)


def test_people_may_write_them_in_any_order_and_twice() -> None:
    assert parse_indexes("7-9, 1,3 ,8", "spec.array", most=10) == [1, 3, 7, 8, 9]
    assert format_indexes([9, 7, 1, 8, 3]) == "1,3,7-9"


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "5-1", "1,,2", "0-10", "0-999999999", "1.5", "١", "9" * 40])
def test_what_is_no_such_set_or_too_large_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_indexes(text, "spec.array", most=10)
    assert caught.value.field == "spec.array"
