"""A node's coordinate in a space whose distances are round trips, so that thousands of nodes need not probe each other.

Vivaldi (Dabek, Cox, Kaashoek, Morris: A Decentralized Network Coordinate System, SIGCOMM 2004) in a plane with heights: the
distance in the plane is that between two nodes' sites, the height that between a node and its site. Three additions are
ours: each round takes several small steps over all known peers; the steps shrink while nothing changes, so that a stable
network has stable coordinates; and a node that stays lost (folded over to where most distances are right, and the short ones
wrong) restarts beside its nearest peer that isn't lost. Pure; milliseconds."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

LEAST_HEIGHT = 0.02
SWEEPS = 5
_STEP, _LEAST_STEP = 0.1, 0.01
_COOLING_ROUNDS = 20.0
_TUNING = 0.25  # how fast the error follows the measurements
_NEAR = 5.0  # an error is relative to the round trip, but to no less than this: short ones are never exact
_LEAST_ERROR, _WORST_ERROR = 0.02, 1.0
_LOST, _LOST_ROUNDS = 0.3, 10  # a node restarts after so many rounds with a greater error
_SURPRISE = 0.5  # a greater mean error means that the network has changed


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The round trip between two coordinates (a position, and last a height)."""
    return math.dist(one[:-1], other[:-1]) + one[-1] + other[-1]


class Position:
    """A node's own coordinate. ``seed`` chooses the first step away from peers at the same point."""

    def __init__(self, seed: str) -> None:
        self.at = (0.0, 0.0, LEAST_HEIGHT)  # x, y, height
        self.error = _WORST_ERROR  # 0 to 1
        self._rounds = self._lost_rounds = 0
        self._chance = random.Random(seed)  # noqa: S311 (the same for the same seed)

    def learn(self, seen: Collection[tuple[Sequence[float], float, float]]) -> None:
        """Learn from one round of probes: (coordinate, error, round trip) of each peer."""
        if not seen:
            return
        self._rounds += 1
        self._lost_rounds = self._lost_rounds + 1 if self.error > _LOST else 0
        if self._lost_rounds >= _LOST_ROUNDS:
            self._begin_anew(seen)
        step = max(_LEAST_STEP, _STEP / (1 + max(0.0, self._rounds - _COOLING_ROUNDS / 2) / _COOLING_ROUNDS))
        for _ in range(SWEEPS):
            for at, error, round_trip in seen:
                self._step_towards(at, error, round_trip, step)
        wrong = sum(abs(distance(self.at, at) - trip) / max(trip, _NEAR) for at, _, trip in seen) / len(seen)
        if wrong > _SURPRISE:
            self._rounds = 0

    def _begin_anew(self, seen: Collection[tuple[Sequence[float], float, float]]) -> None:
        sure = [(round_trip, at) for at, error, round_trip in seen if error < _LOST]
        if sure:
            _, (x, y, _) = min(sure)
            self.at = (x, y, LEAST_HEIGHT)
            self._rounds = self._lost_rounds = 0

    def _step_towards(self, other: Sequence[float], error: float, round_trip: float, step: float) -> None:
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
