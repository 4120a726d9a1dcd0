"""The memory that a node takes to boot a template counts as an allocation's, for as long as the node reports it."""

from __future__ import annotations

from msgspec.structs import replace
from tests.unit.scheduler.node_items import GIB, REPORT, make_node

from weft.informer.view import Changed, Item
from weft.scheduler.allocation.count import count_booting
from weft.scheduler.node.facts import read_node
from weft.scheduler.table.snapshot import Snapshot


def node(booting: int) -> Item:
    return make_node("n1", replace(REPORT, booting_memory=booting))


def count(snapshot: Snapshot, old: Item | None, new: Item | None) -> tuple[int, ...]:
    """What counts as allocated on n1 once the change is counted: cores in thousandths, memory and disk in bytes."""
    count_booting(snapshot, Changed("/node/-/n1", old, new))
    return tuple(int(amount) for amount in snapshot.allocated[:, 0])


def test_a_boots_memory_counts_until_the_node_reports_it_no_more() -> None:
    snapshot = Snapshot()
    snapshot.put_node(read_node(node(0)))
    snapshot.put_allocation("/allocation/-/n1.a", "u-n1", (1000, GIB, 0))
    assert count(snapshot, None, node(GIB)) == (1000, 2 * GIB, 0)
    assert count(snapshot, node(GIB), node(3 * GIB)) == (1000, 4 * GIB, 0), "the newest, not all of them together"
    assert count(snapshot, node(3 * GIB), node(3 * GIB)) == (1000, 4 * GIB, 0)
    assert count(snapshot, node(3 * GIB), node(0)) == (1000, GIB, 0)


def test_a_node_that_is_gone_boots_nothing() -> None:
    snapshot = Snapshot()
    snapshot.put_node(read_node(node(0)))
    assert count(snapshot, None, node(GIB)) == (0, GIB, 0)
    assert count(snapshot, node(GIB), None) == (0, 0, 0)
