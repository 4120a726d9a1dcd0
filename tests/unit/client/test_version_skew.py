"""Two versions are told of when they are too far apart to have been tried together."""

from __future__ import annotations

import pytest

from weft.client.server.version_skew import describe_skew


@pytest.mark.parametrize("server", ["0.4.0", "0.3.9", "0.5.0rc1"])
def test_a_minor_version_apart_nothing_is_said(server: str) -> None:
    assert describe_skew(server, client="0.4.2") is None


@pytest.mark.parametrize("server", ["0.6.0", "0.2.0", "1.4.2", "unknown", ""])
def test_further_apart_both_versions_are_named(server: str) -> None:
    told = describe_skew(server, client="0.4.2")
    assert told is not None and "0.4.2" in told and server in told
