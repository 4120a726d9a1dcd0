"""Questions for better nodes that come together read the fabric once."""

from __future__ import annotations

from weft.informer.view import make_view
from weft.scheduler.recommendation.suggest import FRESH_SECONDS, FabricCache
from weft.scheduler.table.snapshot import NodeFacts, Snapshot

NOW = 1_000_000.0


def put_node(snapshot: Snapshot, name: str) -> None:
    snapshot.put_node(NodeFacts(name, name, (4000, 2**30, 2**30), True, False, frozenset({"q35"})))


def test_the_fabric_is_read_again_after_a_few_seconds_and_when_nodes_come_or_go() -> None:
    view, snapshot, cache = make_view(), Snapshot(), FabricCache()
    put_node(snapshot, "n1")
    first = cache.read(view, snapshot, NOW)
    assert cache.read(view, snapshot, NOW + FRESH_SECONDS / 2) is first
    later = cache.read(view, snapshot, NOW + FRESH_SECONDS)
    assert later is not first and len(later.problem.target) == 1
    put_node(snapshot, "n2")
    more = cache.read(view, snapshot, NOW + FRESH_SECONDS)
    assert more is not later and len(more.problem.target) == 2
    snapshot.drop_node("n1")
    assert len(cache.read(view, snapshot, NOW + FRESH_SECONDS).problem.target) == 1
    assert cache.read(view, snapshot, NOW - 60) is not more, "the clock was set back"
