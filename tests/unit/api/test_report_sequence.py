"""Reports of a node that come late don't take the place of newer ones, and it is told which one counts."""

from __future__ import annotations

import pytest

from weft.api.state.report_sequence import ReportSequence


@pytest.mark.parametrize(
    ("last", "version", "late"),
    [
        ("", "a.1", False),
        ("a.9", "a.10", False),
        ("a.9", "a.9", False),  # the same again
        ("a.10", "a.9", True),
        ("a.10", "b.1", False),  # of another life: it can't be known
        ("a.10", "", False),  # of an agent that doesn't number them
        ("a.10", "a.x", False),
    ],
)
def test_only_an_older_one_of_the_same_life_is_late(last: str, version: str, late: bool) -> None:
    heard = ReportSequence()
    heard.put("n", last)
    assert heard.is_late("n", version) is late
    assert not heard.is_late("another", version)


def test_what_was_written_last_is_what_counts() -> None:
    heard = ReportSequence()
    asked = heard.get("n")
    assert asked, "a node says its facts again when it is told of any version but its own"
    for version in ("a.1", "b.7", "nonsense", ""):
        heard.put("n", version)
    assert heard.get("n") == "b.7"
    heard.forget("n")
    assert heard.get("n") == asked
    assert not heard.is_late("n", "b.6")
