"""A silent node is autonomous for as long as its spec allows, and lost from then on."""

from __future__ import annotations

import math

import msgspec
import pytest

from weft.controllers.node.controller import find_next_end, fold_node, plan_node
from weft.controllers.node.quarantine import Evidence
from weft.informer.view import Item, make_view
from weft.kinds.node import NODE, NodeReport, NodeSpec, NodeStatus
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.errors import InvalidInput
from weft.objects.schema import read_strict

HOUR = 3600.0
REPORT = NodeReport(cpu=4.0, contact="a")


def fold(former: NodeStatus, live: bool | None, now: float, autonomy: float = HOUR) -> NodeStatus:
    return fold_node(former, REPORT, NodeStatus(), live, now, autonomy)


def test_a_silent_node_is_autonomous_until_its_autonomy_has_passed() -> None:
    ready = fold(NodeStatus(), True, 100.0)
    away = fold(ready, False, 200.0)
    assert (away.phase, away.since, away.lost_at, away.lost_contact) == ("Autonomous", 200.0, 200.0, "a")
    assert away.message == "no heartbeat; autonomous until 1970-01-01 01:03 UTC"
    assert fold(away, False, 200.0 + HOUR - 1.0) == away
    lost = fold(away, False, 200.0 + HOUR)
    assert (lost.phase, lost.since, lost.lost_at) == ("NotReady", 200.0 + HOUR, 200.0)
    assert lost.lost_contact == "a", "it has not been heard since: leases may begin elsewhere"
    back = fold(lost, True, 9000.0)
    assert (back.phase, back.lost_at, back.lost_contact) == ("Ready", None, "")


def test_a_node_without_autonomy_is_lost_at_once_and_one_that_never_came_is_joining() -> None:
    assert fold(NodeStatus(phase="Ready"), False, 200.0, 0.0).phase == "NotReady"
    assert fold(NodeStatus(), False, 200.0).phase == "Joining"


def test_people_end_or_prolong_the_autonomy_of_a_silent_node() -> None:
    away = fold(NodeStatus(phase="Ready"), False, 200.0)
    ended = fold(away, False, 300.0, 0.0)
    assert (ended.phase, ended.lost_at, ended.autonomous_until) == ("NotReady", 200.0, 200.0 + HOUR)
    assert fold(ended, True, 400.0).autonomous_until is None
    assert fold(ended, False, 400.0, 2 * HOUR).phase == "Autonomous"
    assert fold(NodeStatus(phase="NotReady", since=200.0), False, 400.0).lost_at == 200.0, "an older weft wrote it"


def test_while_the_heartbeats_cannot_be_known_nothing_changes() -> None:
    away = fold(NodeStatus(phase="Ready"), False, 200.0)
    assert fold(away, None, 200.0 + 2 * HOUR) == away


def test_the_end_of_the_autonomy_is_looked_at_and_told() -> None:
    node = make_node(NodeStatus(phase="Ready"))
    assert find_next_end(Item(node), 200.0) == math.inf
    node, events = judge(node, 200.0)
    assert events == ["NodeAutonomous"] and find_next_end(Item(node), 300.0) == 200.0 + HOUR
    (status,) = [column.value for column in NODE.display.columns if column.title == "STATUS"]
    (autonomy,) = [column.value for column in NODE.display.columns if column.title == "AUTONOMY"]
    shown = msgspec.json.decode(msgspec.json.encode(node))
    assert (status(shown), autonomy(shown)) == ("Autonomous", "1h")
    node, events = judge(node, 200.0 + HOUR)
    assert events == ["NodeNotReady"] and find_next_end(Item(node), 200.0 + HOUR) == math.inf


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("30d", r"spec\.autonomy_seconds: must be at most 29d"),
        ("-1h", r"spec\.autonomy_seconds: -1h is negative"),
        ("long", r"spec\.autonomy_seconds: 'long' is not a duration"),
    ],
)
def test_an_autonomy_that_cannot_be_is_refused_by_its_field(given: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_strict({"autonomy_seconds": given}, NodeSpec)


def test_an_autonomy_is_written_as_a_duration() -> None:
    assert read_strict({"autonomy_seconds": "72h"}, NodeSpec).autonomy_seconds == 72 * HOUR


def make_node(status: NodeStatus) -> Envelope:
    envelope = NODE.make("n1", NodeSpec(autonomy_seconds=HOUR), 0.0)
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    envelope.report = msgspec.Raw(msgspec.json.encode(REPORT))
    return envelope


def judge(node: Envelope, now: float) -> tuple[Envelope, list[str]]:
    view = make_view()
    view.put(node.key, encode_envelope(node), 1)
    commit = plan_node(view, view.of_kind("node")[node.key], False, "", now, Evidence(view))
    assert commit is not None
    (write,) = commit.writes
    return msgspec.json.decode(write.value, type=Envelope), [event.reason for event in commit.events]
