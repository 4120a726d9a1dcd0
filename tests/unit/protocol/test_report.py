"""The messages between a node and an API server."""

from __future__ import annotations

import msgspec

from weft.api.node.report import ReportInput
from weft.protocol.report import OpenedSecrets, ReportBody


def test_opened_secrets_show_no_value() -> None:
    opened = OpenedSecrets({"db": {"password": "open-sesame"}})
    assert "open-sesame" not in f"{opened} {opened!r}"
    assert b"open-sesame" in msgspec.json.encode(opened)


def test_a_server_reads_each_field_that_an_agent_reports() -> None:
    assert {field.name for field in msgspec.structs.fields(ReportInput)} == set(ReportBody.__struct_fields__)
