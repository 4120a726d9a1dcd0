"""Which reports a plan ahead of a shortage is made from."""

from __future__ import annotations

import pytest

from weft.controllers.migration.ahead import asks_about, name_group
from weft.informer.view import Item
from weft.kinds.migration import AHEAD_LABEL
from weft.kinds.report import REPORT, ReportSpec


@pytest.mark.parametrize(
    ("spec", "asks"),
    [
        (ReportSpec(subject="shortage", node="n1"), True),
        (ReportSpec(subject="shortage", node="n2"), False),
        (ReportSpec(subject="rebalance"), False),
    ],
)
def test_a_label_alone_makes_no_question_about_a_node(spec: ReportSpec, asks: bool) -> None:
    report = Item(REPORT.make("ahead-1", spec, 0.0, labels={AHEAD_LABEL: "n1"}))
    assert asks_about(report, "n1") is asks
    assert name_group(report, 0) == name_group(report, 0) != name_group(report, 1)
