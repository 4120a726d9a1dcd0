"""What a node reports of endpoints that leave never makes its object too large to be stored."""

from __future__ import annotations

import msgspec

from weft.api.node.report import bound_departed
from weft.kinds.node import MOST_DEPARTED, MOST_DEPARTED_CHARACTERS, NodeReport


def test_a_report_keeps_as_many_departures_as_can_be_stored() -> None:
    names = [f"{number:036}/10.0.0.2" for number in range(5000)]
    long = "x" * (MOST_DEPARTED_CHARACTERS + 1)
    sent = msgspec.Raw(msgspec.json.encode({"departed": [long, *names], "arch": "x86_64", "later": 1}))
    kept = bound_departed(sent)
    report = msgspec.json.decode(kept, type=NodeReport)
    assert (report.departed, report.arch) == (names[:MOST_DEPARTED], "x86_64")
    assert msgspec.json.decode(kept)["later"] == 1, "what a newer agent says besides stays"


def test_other_reports_stay_as_they_are() -> None:
    for sent in (b"null", b"{}", b'{"departed": ["s/10.0.0.2"], "arch": "arm64"}'):
        assert bytes(bound_departed(msgspec.Raw(sent))) == sent
