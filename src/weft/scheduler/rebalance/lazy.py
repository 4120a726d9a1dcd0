"""Good steps one after the other, where each guest is different: a queue of the best gain of each guest. The first one is weighed
again before it steps, and so are those that talk with it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

import numpy as np

from weft.scheduler.rebalance.model import Budget, Flags, MigrationStep, Problem, State, Whole

MOST_WEIGHED = 20_000_000  # guests × nodes compared at the beginning
LEAST_GAIN = 1e-6

Check = Callable[[int, int], Flags | None]


def accept_all(guest: int, target: int) -> Flags | None:
    return None


def find_steps(problem: Problem, budget: Budget, check: Check = accept_all) -> list[MigrationStep]:
    """``check`` is asked before a guest goes to a target: None, it counts it there; or the nodes (n) that may take it, which the
    target isn't one of."""
    state, steps, size = State(problem), list[MigrationStep](), 0.0
    may: dict[int, Flags] = {}
    version = [0] * len(problem.at)

    def weigh(guest: int) -> tuple[float, int]:
        fits = state.fits(guest)
        if guest in may:
            fits &= may[guest]
        if not fits.any():
            return 0.0, -1
        source = int(state.at[guest])
        scores = state.spreads(state.adds(guest), np.array([source]))[0] + problem.penalty
        if (far := state.distances(guest)) is not None:
            scores = scores + problem.traffic * far
        now = state.spread() + problem.penalty[source] + (problem.traffic * far[source] if far is not None else 0.0)
        scores = np.where(fits, scores, np.inf)
        target = int(scores.argmin())
        return float(now - scores[target] - problem.price[guest]), target

    queue = []
    for guest in choose_guests(problem, state).tolist():
        gain, target = weigh(guest)
        if gain > LEAST_GAIN:
            queue.append((-gain, guest, target, 0))
    heapify(queue)
    while queue and len(steps) < budget.steps:
        _, guest, _, seen = heappop(queue)
        if seen != version[guest] or size + problem.size[guest] > budget.size:
            continue
        gain, target = weigh(guest)
        if gain <= LEAST_GAIN:
            continue
        version[guest] += 1
        if queue and gain < -queue[0][0]:
            heappush(queue, (-gain, guest, target, version[guest]))
            continue
        if (allowed := check(guest, target)) is not None:
            may[guest] = allowed
            may[guest][target] = False
            again, other = weigh(guest)
            if again > LEAST_GAIN:
                heappush(queue, (-again, guest, other, version[guest]))
            continue
        source = int(state.at[guest])
        state.apply(guest, target)
        size += float(problem.size[guest])
        steps.append(MigrationStep(guest, source, target, state.score()))
        version[guest] = -1  # each guest steps at most once
        for peer, _ in state.peers[guest]:
            if problem.mobile[peer] and version[peer] >= 0:
                version[peer] += 1
                again, other = weigh(peer)
                if again > LEAST_GAIN:
                    heappush(queue, (-again, peer, other, version[peer]))
    return steps


def choose_guests(problem: Problem, state: State) -> Whole:
    """The guests that are weighed: all, or, of too many, those that talk most and those on the nodes that are fullest."""
    guests = np.flatnonzero(problem.mobile)
    most = max(1, MOST_WEIGHED // max(1, len(problem.target)))
    if len(guests) <= most:
        return guests
    fullness = (problem.weights[:, None] * state.x).sum(axis=0)[problem.at[guests]]
    fullness = fullness + problem.penalty[problem.at[guests]]
    talk = np.array([sum(rate for _, rate in state.peers[guest]) for guest in guests.tolist()])
    first = guests[np.argsort(-fullness, kind="stable")[: most // 2]]
    loud = guests[np.argsort(-talk, kind="stable")[: most // 2]]
    return np.unique(np.concatenate([first, loud]))
