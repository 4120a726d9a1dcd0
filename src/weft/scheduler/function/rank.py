"""The serverless choice: made at invocation, over the snapshot of that instant, and never queued. Pure.

The gateway asks the nodes in this order; each may still refuse, because only the node knows what is free at this instant. If no
node fits, the answer is final: the explanation is why, and nothing waits.
"""

from __future__ import annotations

import msgspec
import numpy as np

from weft.contracts.policy import Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import Explanation, explain

MOST = 8


class RankedNode(msgspec.Struct, frozen=True):
    """A node that can take it, and how good it is (0–100)."""

    node: str
    uid: str
    score: float


def rank_places(engine: Engine, request: Request, uid: str, most: int = MOST) -> list[RankedNode] | Explanation:
    """The ``most`` best nodes for an invocation ``uid``, best first, equals by name; if none fits, why."""
    scores, snapshot = engine.scores(request, uid), engine.snapshot
    rows = np.flatnonzero(scores >= 0.0)
    if not rows.size:
        return explain(engine, request, uid, None)
    if rows.size > 4 * most:  # sort only those that could be among the best
        least = np.partition(scores[rows], rows.size - most)[rows.size - most]
        rows = rows[scores[rows] >= least]
    order = rows[np.lexsort((snapshot.rank[rows], -scores[rows]))][:most]
    return [RankedNode(snapshot.names[row], snapshot.uids[row], float(scores[row])) for row in order.tolist()]
