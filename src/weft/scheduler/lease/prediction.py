"""How long a workload will run, guessed from what its owner's last ones took.

Requested durations are several times too long on real clusters, and a user's next job resembles the last ones: the mean of these,
shrunk towards the request while there are few of them, each cut at the request. Prediction from history: Tsafrir, Etsion and
Feitelson, "Backfilling Using System-Generated Predictions", IEEE TPDS 18(6), 2007; the shrunk mean is our own.

A lease that was extended took more than its owner requested when it waited. While the owner's last ones include such a lease, what
he requests counts as at least that long, and no run time is cut: who requests too little gains nothing by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from weft.kinds.accounting_record import RunTime

REMEMBERED = 10  # of an owner's ended workloads
REQUEST_WEIGHT = 1.0  # the request counts as that many ended workloads
MOST_OWNERS = 10_000  # those whose workloads ended last


class RunTimes:
    """Run times of each owner's newest workloads."""

    def __init__(self) -> None:
        self._ended: dict[Hashable, deque[RunTime]] = {}

    def add(self, owner: Hashable, seconds: float, *, extended: bool = False) -> None:
        ended = self._ended.pop(owner, None) or deque(maxlen=REMEMBERED)
        ended.append(RunTime(seconds, extended))
        self._ended[owner] = ended  # the newest one comes last
        if len(self._ended) > MOST_OWNERS:
            del self._ended[next(iter(self._ended))]

    def list_of(self, owner: Hashable) -> list[RunTime]:
        """The oldest first; at most REMEMBERED."""
        return list(self._ended.get(owner, ()))

    def put(self, owner: Hashable, ended: list[RunTime]) -> None:
        """Put in what was remembered elsewhere, the oldest first."""
        for one in ended:
            self.add(owner, one.seconds, extended=one.extended)

    def predict(self, owner: Hashable, requested_seconds: float) -> float:
        """Just what was requested for an owner without history, and at most that for one whose leases weren't extended."""
        ended = self._ended.get(owner, ())
        longest = max([requested_seconds, *(one.seconds for one in ended if one.extended)])
        known = sum([min(one.seconds, longest) for one in ended])
        return (REQUEST_WEIGHT * longest + known) / (REQUEST_WEIGHT + len(ended))

    def guess(self, owner: Hashable, requested_seconds: float | None) -> float | None:
        """Predict as ``predict`` does; where nothing was requested the mean, None for an owner without history."""
        if requested_seconds is not None:
            return self.predict(owner, requested_seconds)
        ended = self._ended.get(owner)
        return sum([one.seconds for one in ended]) / len(ended) if ended else None
