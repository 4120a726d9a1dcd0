"""Inputs of rebalancing: nodes, guests, and a score that is better when it is lower.

    score = Σ weight × standard deviation over the nodes, for each term (a share of a node: used cores, free memory, …)
          + the penalties of nodes, for each guest on them
          + Σ rate × round trip × ``traffic`` over all pairs of guests that talk

A variance follows from a sum and a sum of squares, so the score after any step follows from four numbers of two nodes. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """``d`` terms, ``r`` resources, ``g`` guests, ``n`` nodes. A guest adds ``load × scale`` to each term of its node."""

    weights: Reals  # (d)
    base: Reals  # (d, n): what nodes have of each term without these guests
    scale: Reals  # (d, n)
    counted: Flags  # (n): nodes that count in the deviations
    load: Reals  # (g, d)
    at: Whole  # (g): the node of each guest
    need: Whole  # (g, r)
    free: Whole  # (r, n): what no guest has
    target: Flags  # (n): nodes that take guests
    mobile: Flags  # (g)
    penalty: Reals  # (n)
    price: Reals  # (g): a step's gain must exceed it
    size: Reals  # (g): bytes that its migration transfers
    pairs: Sequence[tuple[int, int, float]] = ()  # guests that talk, and at which rate
    round_trips: Reals | None = None  # (n, n)
    traffic: float = 0.0


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    steps: int
    size: float = float("inf")  # bytes


class MigrationStep(msgspec.Struct, frozen=True):
    guest: int
    source: int
    target: int
    score: float  # after it


class State:
    """Places of the guests, and all sums that follow from them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.at = problem.at.copy()
        self.free = problem.free.copy()
        self._scale = np.where(problem.counted, problem.scale, 0.0)
        self.count = max(1, int(problem.counted.sum()))
        self.peers: list[list[tuple[int, float]]] = [[] for _ in range(len(problem.at))]
        if problem.round_trips is not None:
            for a, b, rate in problem.pairs:
                self.peers[a].append((b, rate))
                self.peers[b].append((a, rate))
        self.x = find_terms(problem, self.at)
        self.sum = self.x.sum(axis=1)
        self.squares = np.square(self.x).sum(axis=1)
        self.far = find_traffic(problem, self.at)

    def adds(self, guest: int) -> Reals:
        """Amounts that a guest adds to each term of each node (d, n)."""
        added: Reals = self.problem.load[guest][:, None] * self._scale
        return added

    def spread(self) -> float:
        """The weighted deviations."""
        variance = self.squares / self.count - np.square(self.sum / self.count)
        return float(self.problem.weights @ np.sqrt(np.maximum(variance, 0.0)))

    def score(self) -> float:
        return self.spread() + float(self.problem.penalty[self.at].sum()) + self.problem.traffic * self.far

    def fits(self, guest: int) -> Flags:
        """The nodes with the capacity for it, its own one left out."""
        fits: Flags = self.problem.target & (self.free >= self.problem.need[guest][:, None]).all(axis=0)
        fits[self.at[guest]] = False
        return fits

    def spreads(self, added: Reals, sources: Whole) -> Reals:
        """The weighted deviations after a guest that adds ``added`` goes from a source to another node (sources, n)."""
        x, n = self.x, self.count
        here, there = added[:, sources], added
        left = np.square(x[:, sources] - here) - np.square(x[:, sources])
        come = np.square(x + there) - np.square(x)
        total: Reals = np.zeros((len(sources), x.shape[1]))
        for term, weight in enumerate(self.problem.weights):
            if weight == 0.0:
                continue
            sums = self.sum[term] - here[term][:, None] + there[term][None, :]
            variance = (self.squares[term] + left[term][:, None] + come[term][None, :]) / n
            variance -= np.square(sums / n)
            np.maximum(variance, 0.0, out=variance)
            np.sqrt(variance, out=variance)
            variance *= weight
            total += variance
        return total

    def distances(self, guest: int) -> Reals | None:
        """Rate × round trip of all that the guest says, if it were on each node (n); None if it says nothing."""
        peers, round_trips = self.peers[guest], self.problem.round_trips
        if not peers or round_trips is None:
            return None
        rows = self.at[[peer for peer, _ in peers]]
        far: Reals = round_trips[:, rows] @ np.array([rate for _, rate in peers])
        return far

    def apply(self, guest: int, target: int) -> None:
        source, need = int(self.at[guest]), self.problem.need[guest]
        if (far := self.distances(guest)) is not None:
            self.far += float(far[target] - far[source])
        self.free[:, source] += need
        self.free[:, target] -= need
        added = self.problem.load[guest][:, None] * self._scale[:, [source, target]]
        for column, (node, sign) in enumerate(((source, -1.0), (target, 1.0))):
            old = self.x[:, node].copy()
            self.x[:, node] = old + sign * added[:, column]
            self.sum += self.x[:, node] - old
            self.squares += np.square(self.x[:, node]) - np.square(old)
        self.at[guest] = target


def find_terms(problem: Problem, at: Whole) -> Reals:
    """The terms of all nodes (d, n), with the guests ``at`` these; 0 where a node doesn't count."""
    x = problem.base.copy()
    for term in range(len(problem.weights)):
        x[term] += np.bincount(at, problem.load[:, term], minlength=x.shape[1]) * problem.scale[term]
    terms: Reals = np.where(problem.counted, x, 0.0)
    return terms


def find_traffic(problem: Problem, at: Whole) -> float:
    """Σ rate × round trip."""
    if problem.round_trips is None or not len(problem.pairs):
        return 0.0
    a, b = at[[pair[0] for pair in problem.pairs]], at[[pair[1] for pair in problem.pairs]]
    return float(problem.round_trips[a, b] @ np.array([pair[2] for pair in problem.pairs]))


def find_score(problem: Problem, at: Whole) -> float:
    """The score with the guests ``at`` these nodes, from the beginning."""
    spread = find_terms(problem, at)[:, problem.counted].std(axis=1) if problem.counted.any() else np.zeros(1)
    far = problem.traffic * find_traffic(problem, at)
    return float((problem.weights * spread).sum() + problem.penalty[at].sum()) + far
