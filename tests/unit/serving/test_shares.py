"""Shares: so much for all, a part for each."""

from __future__ import annotations

import pytest

from weft.serving.shares import Shares, who_is


def test_what_one_has_is_counted_and_forgotten_with_the_last_of_it() -> None:
    shares = Shares(100, 40)
    shares.take("a", 40)
    assert shares.has_capacity("b", 40) and not shares.has_capacity("a", 1) and not shares.is_too_much("a")
    shares.take("a", 1)
    shares.take("b", 60)
    assert shares.is_too_much("a") and shares.is_full
    shares.give_back("b", 60)
    shares.give_back("a", 41)
    assert not shares.held and shares.total == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
    ],
)
def test_an_address_says_who_it_is(one: str, other: str, same: bool) -> None:
    assert (who_is(one) == who_is(other)) == same
