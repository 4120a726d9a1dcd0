"""An interval around a forecast that learns from its own errors: two tails, each tracked as a quantile.

Quantile tracking by stochastic approximation (Robbins and Monro, 1951), with steps in proportion to the errors' size, so that no
distribution is assumed and a drift is followed."""

from __future__ import annotations

import numpy as np

from weft.contracts.history import Floats

PACE = 0.18
_SIZE_SHARE = 0.02


class Intervals:
    """Intervals of ``count`` series; each tail is to hold ``tail`` of the outcomes."""

    def __init__(self, count: int, tail: float) -> None:
        self._tail = tail
        self._below = np.zeros(count)
        self._above = np.zeros(count)
        self._size = np.zeros(count)

    def begin(self, mean_step: Floats) -> None:
        """Begin before any error is known: as wide as the first samples' mean step to both contexts."""
        self._below, self._above, self._size = mean_step.copy(), mean_step.copy(), mean_step / 2

    def learn(self, forecast: Floats, outcome: Floats) -> None:
        """One outcome of each series, and what had been forecast; a NaN teaches nothing. Shapes (count,)."""
        error = outcome - forecast
        known = ~np.isnan(error)
        error = np.where(known, error, 0.0)
        self._size = np.where(known, (1 - _SIZE_SHARE) * self._size + _SIZE_SHARE * np.abs(error), self._size)
        pace = np.where(known, PACE * self._size, 0.0)
        self._above = np.maximum(0.0, self._above + pace * ((error > self._above) - self._tail))
        self._below = np.maximum(0.0, self._below + pace * ((-error > self._below) - self._tail))

    def around(self, forecast: Floats) -> tuple[Floats, Floats]:
        """Lower and upper end, shape (count,) each."""
        return forecast - self._below, forecast + self._above
