"""Gain of a guest's migration, on each node; and whether that lasts in the hours ahead. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.scheduler.rebalance.model import Flags, Reals, State


def find_gains(state: State, guest: int) -> Reals:
    """How much the score would fall if the guest went to each node (n), its price not counted."""
    problem, source = state.problem, int(state.at[guest])
    scores = state.spreads(state.adds(guest), np.array([source]))[0] + problem.penalty
    now = state.spread() + float(problem.penalty[source])
    if (far := state.distances(guest)) is not None:
        scores, now = scores + problem.traffic * far, now + problem.traffic * float(far[source])
    gains: Reals = now - scores
    gains[source] = 0.0
    return gains


def find_lasting(states: Sequence[State], guest: int) -> Flags | None:
    """The nodes (n) where a guest's migration gains more than its price in each of these states, so that it doesn't migrate to and
    fro; None: there are no states."""
    allowed: Flags | None = None
    for state in states:
        gains: Flags = state.problem.target & (find_gains(state, guest) > state.problem.price[guest])
        allowed = gains if allowed is None else allowed & gains
    return allowed
