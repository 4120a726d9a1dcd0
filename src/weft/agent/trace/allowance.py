"""How many spans the guests of a node may send now: a rate for all together, of which each that sends has an equal share. Pure."""

from __future__ import annotations

from weft.contracts.clock import Clock

ACTIVE_SECONDS = 60.0  # since it last asked
MOST_ACTIVE = 10_000


class Allowance:
    """``rate`` a second and ``burst`` at once of all; one guest's part of the burst is ``least_burst`` at least."""

    def __init__(self, rate: float, burst: float, least_burst: float, clock: Clock) -> None:
        self._rate, self._burst, self._least_burst, self._clock = rate, burst, least_burst, clock
        self._left, self._at = burst, clock.elapsed()
        self._guests: dict[
            str, tuple[float, float]
        ] = {}  # what is left of each, and when that was; the latest at the end

    def take(self, uid: str, count: int) -> bool:
        """Whether the guest may send ``count`` more; they count then."""
        now = self._clock.elapsed()
        while self._guests:
            oldest = next(iter(self._guests))
            if now - self._guests[oldest][1] < ACTIVE_SECONDS and len(self._guests) < MOST_ACTIVE:
                break
            del self._guests[oldest]
        sharing = len(self._guests) + (uid not in self._guests)
        most = max(self._least_burst, self._burst / sharing)
        left, at = self._guests.pop(uid, (most, now))
        left = min(most, left + (now - at) * self._rate / sharing)
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        count = max(0, count)
        allowed = count <= min(left, self._left)
        if allowed:
            left -= count
            self._left -= count
        self._guests[uid] = left, now
        return allowed
