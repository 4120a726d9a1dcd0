"""How many writes a second a person may make: a user with all tokens together, or a token that belongs to no user.

Each has a bucket that fills again over time, and holds enough for a large batch. Nodes have none, nor have those who administer the
whole fabric, who could raise the limit. Each API server counts its own.
"""

from __future__ import annotations

import math

from weft.api.state.login_limits import Tries
from weft.objects.errors import Throttled
from weft.trust.credentials import Actor

WRITES_PER_SECOND = 200
BURST_SECONDS = 10  # worth of writes that a bucket holds
LEAST_BURST = 1_000  # a batch as large as may be


class WriteRates:
    """``rate``: writes a second; 0: no limit."""

    def __init__(self, rate: int = WRITES_PER_SECOND) -> None:
        self._rate = rate
        self._burst = max(rate * BURST_SECONDS, LEAST_BURST)
        self._buckets = Tries(self._burst, 1 / rate if rate else 0.0)

    def take(self, actor: Actor, now: float, count: int = 1) -> None:
        """Count writes of ``actor`` at ``now`` (monotonic seconds). Raises Throttled if they are too many at the moment."""
        if not self._rate or actor.kind != "person" or actor.administers_all:
            return
        wait = self._buckets.find_wait(actor.name, now, count)
        if wait > 0:
            seconds = math.ceil(wait)
            raise Throttled(
                f"{actor.name} writes too fast: {self._rate} objects a second, and {self._burst} at once, are allowed",
                reason="tooManyWrites",
                hint=f"try again in {seconds} s; weft server --writes-per-second sets the limit",
                details={"limit": self._rate},
                retry_after_seconds=seconds,
            )
        self._buckets.take(actor.name, now, count)
