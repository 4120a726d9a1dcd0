"""How many requests each caller may send. Pure: token buckets, of a bounded number of callers."""

from __future__ import annotations

import msgspec

MOST_CALLERS = 10_000


class _Bucket(msgspec.Struct):
    tokens: float
    at: float


class RateBound:
    """``rate`` requests a second of each caller, and up to two seconds' worth at once."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, 2 * rate
        self._buckets: dict[str, _Bucket] = {}  # who asked longest ago is first

    def take(self, who: str, now: float) -> float:
        """0 if ``who`` may go on, else the seconds after which it may. ``now``: elapsed seconds."""
        bucket = self._buckets.pop(who, None)
        if bucket is None:
            if len(self._buckets) >= MOST_CALLERS:
                del self._buckets[next(iter(self._buckets))]
            bucket = _Bucket(self._most, now)
        bucket.tokens = min(self._most, bucket.tokens + max(0.0, now - bucket.at) * self._rate)
        bucket.at = now
        self._buckets[who] = bucket
        if bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / self._rate
        bucket.tokens -= 1.0
        return 0.0

    def __len__(self) -> int:
        return len(self._buckets)
