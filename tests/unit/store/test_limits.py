from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weft.store.limits import end_of_prefix

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(text, text)
def test_the_end_of_a_prefix_parts_what_starts_with_it_from_all_that_comes_after(prefix: str, other: str) -> None:
    end = end_of_prefix(prefix)
    assert end is None or end.encode() > prefix.encode()
    for key in (other, prefix + other, (end or "") + other):
        assert key.startswith(prefix) == (key >= prefix and (end is None or key < end))


def test_nothing_comes_after_the_empty_prefix_or_the_last_character() -> None:
    assert end_of_prefix("") is None
    assert end_of_prefix("\U0010ffff") is None
    assert end_of_prefix("/\U0010ffff") == "0"
    assert end_of_prefix("/\ud7ff") == "/\ue000"
