"""The messages between a node and an API server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.api.node.report import ReportInput
from weft.kinds.fields.replication.work import AskOrder, SendOrder
from weft.protocol.report import OpenedSecrets, ReportAnswer, ReportBody


class _FormerSend(msgspec.Struct, frozen=True, kw_only=True):
    """What the first agents that send points can't read an answer without."""

    uid: str
    node_uid: str
    attempt: int
    cluster: str
    project: str
    replica: str
    manifest: dict[str, Any]
    snapshot: str


class _FormerAnswer(msgspec.Struct):
    sends: list[_FormerSend] = []


def test_opened_secrets_show_no_value() -> None:
    opened = OpenedSecrets({"db": {"password": "open-sesame"}})
    assert "open-sesame" not in f"{opened} {opened!r}"
    assert b"open-sesame" in msgspec.json.encode(opened)


def test_a_server_reads_each_field_that_an_agent_reports() -> None:
    assert {field.name for field in msgspec.structs.fields(ReportInput)} == set(ReportBody.__struct_fields__)


def test_a_question_after_a_replica_is_nothing_to_an_agent_that_knows_none() -> None:
    """Else the whole answer would be refused by each agent that is older than its server."""
    named: dict[str, Any] = {
        "uid": "r",
        "node_uid": "n",
        "attempt": 1,
        "cluster": "west",
        "project": "lab",
        "replica": "web",
    }
    answer = ReportAnswer(sends=[SendOrder(**named, manifest={}, snapshot="s")], asks=[AskOrder(**named)])
    assert [one.snapshot for one in msgspec.json.decode(msgspec.json.encode(answer), type=_FormerAnswer).sends] == ["s"]
    with pytest.raises(TypeError, match="manifest"):
        SendOrder(**named)
