"""Which nodes have not spoken yet in the store's present history: after a restore only they know what runs on them.

Until a node has said it, nothing is placed or given up that its guests may have a part in. One that is lost is waited for
only as long as it takes to know that it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.informer.cache import Cache
from weft.informer.view import Item
from weft.kinds.node import NodeReport, NodeStatus

PATIENCE_SECONDS = 30.0


def may_be_silent(cache: Cache, node: Item) -> bool:
    """Whether ``find_silent`` has to look at it: by what it has said, which changes rarely."""
    return node.report(NodeReport).epoch != cache.epoch or node.status(NodeStatus).phase == "Joining"


def find_silent(cache: Cache, among: Iterable[Item] | None = None) -> list[str]:
    """Their names; ``among`` are all the nodes that may be silent."""
    found = []
    for item in cache.view.of_kind("node").values() if among is None else among:
        epoch, phase = item.report(NodeReport).epoch, item.status(NodeStatus).phase
        if phase == "Ready" and epoch not in ("", cache.epoch):
            found.append(item.envelope.name)
        elif cache.age_seconds < PATIENCE_SECONDS and (epoch != cache.epoch or phase == "Joining"):
            # The store says that it is lost, or new, or Ready and not a word of a history yet; but that may be long ago:
            # a backup taken as it joined knows nothing of what it was given since. One that never hears of a history holds
            # up the others no longer than that.
            found.append(item.envelope.name)
    return sorted(found)
