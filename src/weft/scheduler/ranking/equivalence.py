"""Results kept for all equal requests, so that the next one is decided faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from weft.contracts.policy import Occasion, Request, Values
from weft.scheduler.ranking.best_nodes import Ranking
from weft.scheduler.ranking.by_capacity import BITS, NONE, NOT_FOUND, ROW
from weft.scheduler.ranking.linear_scores import FAR, LinearScores
from weft.scheduler.ranking.score import Score
from weft.scheduler.table.filter_masks import Masks
from weft.scheduler.table.least_free import LeastFree
from weft.scheduler.table.snapshot import Snapshot

NEVER = -np.inf


class Class(Protocol):
    def best(self, uid: str) -> int | None:
        """The row of the best node for workload ``uid``; None where all are refused."""

    def scores(self, uid: str) -> Values:
        """Scores of every row, times SCALE; NEVER where a filter refuses. Not to be changed."""


class Anew:
    """The score depends on other nodes, chance, or the past: nothing can be kept."""

    def __init__(self, masks: Masks, score: Score, request: Request, occasion: Callable[[str], Occasion]) -> None:
        self._masks = masks
        self._score = score
        self._request = request
        self._occasion = occasion

    def best(self, uid: str) -> int | None:
        return find_first_best(self.scores(uid))

    def scores(self, uid: str) -> Values:
        scores = self._score.find(self._occasion(uid))
        np.putmask(scores, ~self._masks.fits(self._request), NEVER)
        return scores


class ByRow:
    """Each node's score follows from its own row: only rows that changed are scored again."""

    def __init__(
        self,
        snapshot: Snapshot,
        masks: Masks,
        score: Score,
        request: Request,
        occasion: Callable[[str], Occasion],
    ) -> None:
        self._snapshot = snapshot
        self._masks = masks
        self._score = score
        self._request = request
        self._occasion = occasion
        self._epochs = (-1, -1)
        self._position = 0
        self._scores: Values = np.zeros(0)

    def best(self, uid: str) -> int | None:
        return find_first_best(self.scores(uid))

    def scores(self, uid: str) -> Values:
        snapshot, request = self._snapshot, self._request
        epochs, now = (snapshot.epoch, snapshot.facts_epoch), len(snapshot.log)
        if self._epochs != epochs or (now - self._position) * 4 > len(snapshot):
            self._scores = self._score.find(self._occasion(uid))
            np.putmask(self._scores, ~self._masks.fits(request), NEVER)
        elif self._position < now:
            rows = list(dict.fromkeys(snapshot.log[self._position :]))
            scores = self._score.find(self._occasion(uid), rows)
            np.putmask(scores, ~self._masks.fits(request, rows), NEVER)
            self._scores[rows] = scores
        self._epochs, self._position = epochs, now
        return self._scores


class ByLoad:
    """The score is linear in the node's load but for a fixed bonus, and only capacity changes: all rows are scored, or kept in
    order once the request comes up so often that little changes in between."""

    __slots__ = (
        "_amounts",
        "_bonus",
        "_epochs",
        "_is_far",
        "_is_open",
        "_least",
        "_mask",
        "_masks",
        "_most",
        "_near",
        "_parts",
        "_ranking",
        "_request",
        "_score",
        "_seen",
        "_shifts",
        "_slopes",
        "_snapshot",
    )

    def __init__(
        self,
        snapshot: Snapshot,
        masks: Masks,
        score: Score,
        slopes: LinearScores,
        request: Request,
        most: int,
        least: LeastFree,
    ) -> None:
        self._snapshot = snapshot
        self._masks = masks
        self._score = score
        self._slopes = slopes
        self._request = request
        self._amounts = request.amounts
        self._most = most
        self._epochs = (-1, -1)
        self._seen = 0  # how long the log was last time
        self._near = 0  # how often in a row it came up soon after
        self._is_far = False
        self._is_open = False  # whether no filter refuses any node for its facts
        self._least = least
        self._ranking: Ranking | None = None

    def best(self, uid: str) -> int | None:
        snapshot, slopes = self._snapshot, self._slopes
        slopes.update()
        changed, self._seen = len(snapshot.log) - self._seen, len(snapshot.log)
        if self._epochs != (snapshot.epoch, snapshot.facts_epoch):
            self._begin()
        if not self._is_far:
            best, parts = NONE, self._parts
            for shift, mask in parts:
                shelves = slopes.sort(mask)
                if shelves is None:
                    best = NOT_FOUND
                elif best < NOT_FOUND >> 1:
                    best = max(best, shelves.find(self._shifts, self._amounts, snapshot.cells) + shift)
                    self._is_far = best > NOT_FOUND >> 1  # too many that are emptier lack something
            if best < NOT_FOUND >> 1:
                return ROW - (best & ROW) if best > NONE >> 1 else None
        if changed > FAR + len(snapshot) // 500:  # to score each of them again would take longer than all anew
            self._near, self._ranking = 0, None
        elif self._ranking is not None:
            return self._ranking.best()
        else:
            self._near += 1
            if self._near > 2:
                bonus = np.zeros(len(snapshot)) if self._bonus is None else self._bonus.values
                self._ranking = Ranking(snapshot, slopes, self._amounts, self._mask, bonus, self._most)
                return self._ranking.best()
        return find_first_best(self._refresh())

    def leaders(self, most: int) -> list[tuple[int, float]] | None:
        """The best rows with their scores times SCALE, at most so many, the best first, of a request that was just decided
        and that no node refuses; None where that takes the scores of all nodes."""
        snapshot = self._snapshot
        if self._epochs != (snapshot.epoch, snapshot.facts_epoch) or self._bonus is not None or self._is_far:
            return None
        self._slopes.update()
        shelves = self._slopes.sort(self._mask)
        if shelves is None or not self._is_open or not self._least.holds(self._amounts):
            return None
        return [(ROW - (entry & ROW), float(entry >> BITS)) for entry in shelves.leaders(self._shifts, most)]

    def scores(self, uid: str) -> Values:
        self._slopes.update()
        self._mask, self._bonus = self._masks.steady(self._request), self._score.bonus()
        scores = self._refresh()
        scores /= self._score.total
        return scores

    def _begin(self) -> None:
        self._epochs = (self._snapshot.epoch, self._snapshot.facts_epoch)
        self._mask, self._bonus = self._masks.steady(self._request), self._score.bonus()
        self._is_open = bool(self._mask.all())
        self._near, self._ranking = 0, None
        self._shifts = self._slopes.shifts(self._amounts)
        self._parts = [(0, self._mask)] if self._bonus is None else self._bonus.split(self._mask)
        self._is_far = not self._parts

    def _refresh(self) -> Values:
        """Score all nodes."""
        cpu, memory, disk = self._amounts
        free_cpu, free_memory, free_disk = self._snapshot.free
        fits = free_cpu >= cpu
        fits &= free_memory >= memory
        fits &= free_disk >= disk
        fits &= self._mask
        scores = self._slopes.scores(self._amounts)
        if self._bonus is not None:
            scores += self._bonus.values
        np.putmask(scores, ~fits, NEVER)
        return scores


def find_first_best(scores: Values) -> int | None:
    """The first of the best, None where all are refused."""
    if not scores.size:
        return None
    row = int(scores.argmax())
    return row if scores[row] != NEVER else None
