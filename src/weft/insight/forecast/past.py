"""The last values of many series, sample by sample. Rings of arrays: no copy is made when a sample comes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from weft.contracts.history import Floats


class Past:
    """Past of ``count`` series, the last ``length`` samples each, kept as ``dtype``."""

    def __init__(self, count: int, length: int, dtype: DTypeLike = np.float64) -> None:
        self.length = length
        self._twice = np.zeros(
            (count, 2 * length), dtype
        )  # each sample stands at two places, so that any window is one slice
        self.known = 0  # samples that came, at most ``length``
        self._at = 0

    def put(self, values: NDArray[Any]) -> None:
        """One sample of each series, shape (count,)."""
        self._twice[:, self._at] = self._twice[:, self._at + self.length] = values
        self._at = (self._at + 1) % self.length
        self.known = min(self.known + 1, self.length)

    def last(self, samples: int) -> Floats:
        """The newest ``samples``, or all there are: shape (count, n), the oldest first. A view: valid until the next sample."""
        n = min(samples, self.known)
        end = self._at + self.length
        return self._twice[:, end - n : end]

    def ago(self, samples: int) -> Floats | None:
        """The value of so many samples before the newest one; None: not known."""
        if samples >= self.known or samples < 0:
            return None
        return self._twice[:, self._at + self.length - 1 - samples]
