"""The messages between a node and an API server."""

from __future__ import annotations

from typing import get_type_hints

import msgspec

from weft.api.node.report import ReportInput
from weft.kinds.node import NodeReport
from weft.kinds.orders import ORDER_KINDS, OrderReports, Orders
from weft.protocol.report import OpenedSecrets, ReportAnswer, ReportBody


def test_opened_secrets_show_no_value() -> None:
    opened = OpenedSecrets({"db": {"password": "open-sesame"}})
    assert "open-sesame" not in f"{opened} {opened!r}"
    assert b"open-sesame" in msgspec.json.encode(opened)


def test_a_server_reads_each_field_that_an_agent_reports() -> None:
    assert {field.name for field in msgspec.structs.fields(ReportInput)} == set(ReportBody.__struct_fields__)


def test_each_kind_of_order_has_its_field_of_orders_and_of_reports() -> None:
    expected = [(kind.name, list[kind.order], list[kind.report]) for kind in ORDER_KINDS]  # type: ignore[name-defined]
    orders, reports = get_type_hints(Orders), get_type_hints(OrderReports)
    assert [(name, orders[name], reports[name]) for name in orders] == expected and orders.keys() == reports.keys()


def test_an_agent_and_a_server_read_what_they_know_of_a_newer_one_s_orders() -> None:
    """Else all of a report, or of its answer, would be refused."""
    newer = {"orders": {"ask": [], "polish": [{"uid": "u"}]}}
    assert msgspec.convert(newer, ReportAnswer).orders == Orders()
    assert msgspec.convert(newer, NodeReport).orders == OrderReports()
