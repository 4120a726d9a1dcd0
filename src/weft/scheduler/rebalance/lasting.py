"""Which migrations gain now and in each hour ahead: what gains only now would migrate to and fro. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.scheduler.rebalance.model import Flags, State


def find_lasting(states: Sequence[State], guest: int) -> Flags | None:
    """The nodes (n) where a guest's migration gains more than its price in each of these states; None: there are no states."""
    allowed: Flags | None = None
    for state in states:
        problem, source = state.problem, int(state.at[guest])
        scores = state.spreads(state.adds(guest), np.array([source]))[0] + problem.penalty
        now = state.spread() + float(problem.penalty[source])
        if (far := state.distances(guest)) is not None:
            scores, now = scores + problem.traffic * far, now + problem.traffic * float(far[source])
        gains: Flags = problem.target & (now - scores > problem.price[guest])
        allowed = gains if allowed is None else allowed & gains
    return allowed
