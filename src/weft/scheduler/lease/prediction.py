"""How long a workload will run, guessed from what its owner's last ones took.

Requested durations are several times too long on real clusters, and a user's next job resembles the last ones: the mean of these,
shrunk towards the request while there are few of them, each cut at the request. Prediction from history: Tsafrir, Etsion and
Feitelson, "Backfilling Using System-Generated Predictions", IEEE TPDS 18(6), 2007; the shrunk mean is our own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

REMEMBERED = 10  # of an owner's ended workloads
REQUEST_WEIGHT = 1.0  # the request counts as that many ended workloads


class RunTimes:
    """What each owner's newest workloads took, in seconds."""

    def __init__(self) -> None:
        self._ended: dict[Hashable, deque[float]] = {}

    def add(self, owner: Hashable, seconds: float) -> None:
        self._ended.setdefault(owner, deque(maxlen=REMEMBERED)).append(seconds)

    def predict(self, owner: Hashable, requested_seconds: float) -> float:
        """At most what was requested; just that for an owner without history."""
        ended = self._ended.get(owner, ())
        known = sum([min(seconds, requested_seconds) for seconds in ended])
        return (REQUEST_WEIGHT * requested_seconds + known) / (REQUEST_WEIGHT + len(ended))

    def guess(self, owner: Hashable, requested_seconds: float | None) -> float | None:
        """As ``predict``; where nothing was requested the mean, None for an owner without history."""
        if requested_seconds is not None:
            return self.predict(owner, requested_seconds)
        ended = self._ended.get(owner)
        return sum(ended) / len(ended) if ended else None
