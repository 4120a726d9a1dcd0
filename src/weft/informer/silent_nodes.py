"""Silent nodes: they haven't reported yet in the store's present history. After a restore only a node itself knows what runs there.

Until it has reported, nothing is placed or given up that could concern its guests. The others wait for a lost node only until
it is known to be lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.informer.cache import Cache
from weft.informer.view import Item
from weft.kinds.node import NodeReport, NodeStatus

PATIENCE_SECONDS = 30.0


def may_be_silent(cache: Cache, node: Item) -> bool:
    """Whether ``find_silent`` must check the node: by its report, which changes rarely."""
    return node.report(NodeReport).epoch != cache.epoch or node.status(NodeStatus).phase == "Joining"


def find_silent(cache: Cache, among: Iterable[Item] | None = None) -> list[str]:
    """Their names; ``among`` are all the nodes that may be silent."""
    found = []
    for item in cache.view.of_kind("node").values() if among is None else among:
        epoch, phase = item.report(NodeReport).epoch, item.status(NodeStatus).phase
        if phase == "Ready" and epoch not in ("", cache.epoch):
            found.append(item.envelope.name)
        elif cache.age_seconds < PATIENCE_SECONDS and (epoch != cache.epoch or phase == "Joining"):
            # In the store it is lost, new, or Ready without a report of any history; but that may be long ago: a backup from
            # the time of its join has none of its later allocations. A node that never reports a history delays the others
            # no longer than that.
            found.append(item.envelope.name)
    return sorted(found)
