"""Where a node lies in a space in which distances are round trips, so that thousands of nodes need not probe each other.

Vivaldi (Dabek, Cox, Kaashoek, Morris: A Decentralized Network Coordinate System, SIGCOMM 2004) in a plane with heights: of
two nodes the distance in the plane is what lies between their sites, and the height what lies between a node and its site.
Three things are ours: each round goes several times over all that is known of the peers, with small steps; the steps get
smaller the longer nothing is new, so that a network that stands still has coordinates that stand still; and who stays lost
(folded over to where most distances are right, and the short ones wrong) begins anew beside its nearest peer that isn't.
Pure; milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

LEAST_HEIGHT = 0.02
SWEEPS = 5
_STEP, _LEAST_STEP = 0.1, 0.01
_COOLING_ROUNDS = 20.0
_TUNING = 0.25  # how fast the error follows what is seen
_NEAR = 5.0  # an error counts relative to the round trip, but to no less than this: what is near is never exact
_LEAST_ERROR, _WORST_ERROR = 0.02, 1.0
_LOST, _LOST_ROUNDS = 0.3, 10  # who has been wrong by more for so many rounds begins anew
_SURPRISE = 0.5  # a mean error beyond it: the network is another than the one that was learnt


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The round trip between two coordinates (a position, and last a height)."""
    return math.dist(one[:-1], other[:-1]) + one[-1] + other[-1]


class Position:
    """A node's own coordinate ``at`` (x, y, height) and how far wrong it is, 0 to 1. ``seed`` is for the first step apart from
    those that begin at the same point."""

    def __init__(self, seed: str) -> None:
        self.at = (0.0, 0.0, LEAST_HEIGHT)
        self.error = _WORST_ERROR
        self._rounds = self._lost_rounds = 0
        self._chance = random.Random(seed)  # noqa: S311 (the same for the same seed)

    def learn(self, seen: Collection[tuple[Sequence[float], float, float]]) -> None:
        """Take in what one round of probes found: (coordinate, error, round trip) of each peer."""
        if not seen:
            return
        self._rounds += 1
        self._lost_rounds = self._lost_rounds + 1 if self.error > _LOST else 0
        if self._lost_rounds >= _LOST_ROUNDS:
            self._begin_anew(seen)
        step = max(_LEAST_STEP, _STEP / (1 + max(0.0, self._rounds - _COOLING_ROUNDS / 2) / _COOLING_ROUNDS))
        for _ in range(SWEEPS):
            for at, error, round_trip in seen:
                self._move(at, error, round_trip, step)
        wrong = sum(abs(distance(self.at, at) - trip) / max(trip, _NEAR) for at, _, trip in seen) / len(seen)
        if wrong > _SURPRISE:
            self._rounds = 0

    def _begin_anew(self, seen: Collection[tuple[Sequence[float], float, float]]) -> None:
        sure = [(round_trip, at) for at, error, round_trip in seen if error < _LOST]
        if sure:
            _, (x, y, _) = min(sure)
            self.at = (x, y, LEAST_HEIGHT)
            self._rounds = self._lost_rounds = 0

    def _move(self, other: Sequence[float], error: float, round_trip: float, step: float) -> None:
        apart = distance(self.at, other)
        weight = self.error / (self.error + max(error, _LEAST_ERROR))
        wrong = min(abs(apart - round_trip) / max(round_trip, _NEAR), _WORST_ERROR)  # one lost peer is not my own error
        self.error = self.error + (wrong - self.error) * _TUNING * weight
        self.error = min(_WORST_ERROR, max(_LEAST_ERROR, self.error))
        force = step * weight * (round_trip - apart)
        dx, dy = self.at[0] - other[0], self.at[1] - other[1]
        length = math.hypot(dx, dy)
        if length < 1e-6:
            angle = self._chance.uniform(0.0, math.tau)
            dx, dy, length = math.cos(angle), math.sin(angle), 1.0
        heights = self.at[2] + other[-1]
        self.at = (
            self.at[0] + force * dx / length,
            self.at[1] + force * dy / length,
            max(LEAST_HEIGHT, self.at[2] + force * heights / (length + heights)),
        )
