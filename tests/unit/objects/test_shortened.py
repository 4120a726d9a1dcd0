"""Long sentences for people end where one can read on."""

from __future__ import annotations

import pytest

from weft.objects.errors import shorten


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("it fits", 7, "it fits"),
        ("no network fits; another reason that is long", 30, "no network fits …"),
        ("there is no network blue (weft network create blue makes it)", 45, "there is no network blue …"),
        ("a line of words without any end", 20, "a line of words …"),
        ("x" * 30, 10, "xxxxxxxx …"),
    ],
)
def test_a_long_sentence_is_cut_where_a_part_or_a_word_of_it_ends(text: str, most: int, shown: str) -> None:
    assert shorten(text, most) == shown and len(shown) <= most
