"""What a node's report makes of its status, its conditions and its events."""

from __future__ import annotations

import msgspec

from weft.controllers.node.controller import plan_node
from weft.controllers.node.quarantine import Evidence
from weft.informer.view import make_view
from weft.kinds.node import NODE, NodeReport, NodeSpec
from weft.objects.envelope import Envelope, encode_envelope


def judge(node: Envelope, percent: int, generation: int = 1) -> tuple[Envelope, list[str]]:
    """The node after a report, with the reasons of the events that told of it."""
    report = NodeReport(cpu=4.0, connections_percent=percent)
    node = msgspec.structs.replace(node, report=msgspec.Raw(msgspec.json.encode(report)), generation=generation)
    view = make_view()
    view.put(node.key, encode_envelope(node), 1)
    commit = plan_node(view, view.of_kind("node")[node.key], True, "", 100.0, Evidence(view))
    if commit is None:
        return node, []
    (write,) = commit.writes
    return msgspec.json.decode(write.value, type=Envelope), [event.reason for event in commit.events]


def test_a_table_of_connections_that_fills_is_a_condition_an_event_and_seen_in_lists() -> None:
    node = Envelope(kind="node", name="n1", uid="u1", spec=msgspec.Raw(msgspec.json.encode(NodeSpec())))
    node, events = judge(node, 0)
    assert node.condition("ConnectionsFit") is None and events == ["NodeReady"]
    node, events = judge(node, 80)
    assert events == ["NodeConnectionsHigh"]
    (status,) = [column.value for column in NODE.display.columns if column.title == "STATUS"]
    assert status(msgspec.to_builtins(msgspec.json.decode(msgspec.json.encode(node)))) == "Ready,ConnectionsHigh"
    node, events = judge(node, 95, generation=2)
    condition = node.condition("ConnectionsFit")
    assert condition is not None and "95 % full" in condition.message and events == []
    node, events = judge(node, 0, generation=2)
    condition = node.condition("ConnectionsFit")
    assert condition is not None and condition.status == "True" and events == ["NodeConnectionsFit"]
