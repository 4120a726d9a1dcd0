"""Two versions are told of when they are too far apart to have been tried together."""

from __future__ import annotations

import pytest

from weft.client.server.version_skew import describe_skew, find_oldest, is_newer


@pytest.mark.parametrize("server", ["0.4.0", "0.3.9", "0.5.0rc1"])
def test_a_minor_version_apart_nothing_is_said(server: str) -> None:
    assert describe_skew(server, client="0.4.2") is None


@pytest.mark.parametrize("server", ["0.6.0", "0.2.0", "1.4.2", "unknown", ""])
def test_further_apart_both_versions_are_named(server: str) -> None:
    told = describe_skew(server, client="0.4.2")
    assert told is not None and "0.4.2" in told and server in told


@pytest.mark.parametrize(
    ("release", "than", "newer"),
    [
        ("0.2.0", "0.1.9", True),
        ("1.0.0", "0.9.0", True),
        ("0.1.3", "0.1.0", False),
        ("0.1.0", "0.2.0", False),
        ("", "0.1.0", False),
        ("0.10.0", "0.9.0", True),
        ("0.2.0", "", False),
    ],
)
def test_only_a_later_minor_version_is_newer(release: str, than: str, newer: bool) -> None:
    assert is_newer(release, than) is newer


def test_the_oldest_of_several_releases_is_found_by_number() -> None:
    assert find_oldest(["0.10.0", "", "0.9.1", "unknown"]) == "0.9.1"
    assert find_oldest([]) == ""
