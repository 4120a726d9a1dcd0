"""Of which nodes it is certain that a lease hasn't begun there."""

from __future__ import annotations

import msgspec
import pytest

from weft.informer.view import Item
from weft.kinds.node import NODE, NodeActions, NodeReport, NodeSpec, NodeStatus, Quarantine
from weft.scheduler.allocation.promise import CLOCKS_DIFFER_SECONDS, find_node_obstacle, was_lost_before

START = 1000.0


def node(
    phase: str = "NotReady", since: float = 900.0, lost: str = "a", contact: str = "a", lost_at: float | None = None
) -> Item:
    envelope = NODE.make("n1", NodeSpec(), 0.0)
    status = NodeStatus(phase=phase, since=since, lost_contact=lost, lost_at=lost_at)
    envelope.status = msgspec.Raw(msgspec.json.encode(status))
    envelope.report = msgspec.Raw(msgspec.json.encode(NodeReport(contact=contact)))
    return Item(envelope)


@pytest.mark.parametrize(
    ("item", "certain"),
    [
        (node(), True),
        (node(phase="Ready"), False),
        (node(since=START), False),
        (node(since=START - CLOCKS_DIFFER_SECONDS), False),  # by its own clock it may have begun
        (node(since=START + 100.0), False),
        (node(phase="Autonomous"), False),
        (node(since=START + 100.0, lost_at=900.0), True),  # its autonomy ended after the start
        (node(contact="b"), False),  # it has been heard again, and that it is ready isn't noted yet
    ],
)
def test_a_lease_hasn_t_begun_where_the_node_was_lost_before_and_hasn_t_been_heard_since(
    item: Item, certain: bool
) -> None:
    assert was_lost_before(item, START) is certain


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (NodeActions(), ""),
        (NodeActions(cordoned=True), "n1 is cordoned"),
        (NodeActions(maintenance=True), "n1 is under maintenance"),
        (NodeActions(cordoned=True, drain=True), "n1 is being drained"),
    ],
)
def test_why_a_node_takes_nothing_more(asked: NodeActions, why: str) -> None:
    assert find_node_obstacle(Item(NODE.make("n1", NodeSpec(), 0.0, actions=asked)), START) == why


@pytest.mark.parametrize(
    ("until", "on_probation", "why"),
    [(START + 1.0, False, "n1 is quarantined"), (START, False, ""), (START + 1.0, True, "")],
)
def test_a_lease_keeps_its_place_on_a_node_whose_quarantine_ends_before(
    until: float, on_probation: bool, why: str
) -> None:
    envelope = NODE.make("n1", NodeSpec(), 0.0)
    quarantine = Quarantine(since=0.0, until=until, on_probation=on_probation)
    envelope.status = msgspec.Raw(msgspec.json.encode(NodeStatus(phase="Ready", quarantine=quarantine)))
    assert find_node_obstacle(Item(envelope), START) == why
