"""What is said of new networks whose ranges overlap others."""

from __future__ import annotations

from typing import Any

import pytest

from weft.cli.preview.ranges import warn_of_ranges
from weft.cli.session import Session
from weft.contracts.clock import SystemClock


def network(name: str, cidr: str) -> dict[str, Any]:
    return {"kind": "network", "name": name, "uid": name, "project": "lab", "spec": {"cidr": cidr}}


class Networks:
    def list(self, kind: str, project: str) -> Any:
        assert (kind, project) == ("network", "lab")
        return type("Listing", (), {"items": [network("default", "10.1.0.0/16"), network("new", "10.1.0.0/16")]})


@pytest.mark.parametrize(
    ("cidr", "said"),
    [
        ("10.1.7.0/24", "network/new: 10.1.7.0/24 has addresses of network/default (10.1.0.0/16), too"),
        ("10.2.0.0/24", ""),
    ],
)
def test_a_new_network_whose_range_overlaps_another_is_named(
    cidr: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(SystemClock, {})
    session.client = Networks()  # type: ignore[assignment]
    warn_of_ranges(session, [network("new", cidr), {"kind": "vm", "name": "web"}])
    told = capsys.readouterr().err
    assert said in told and bool(told) == bool(said)
