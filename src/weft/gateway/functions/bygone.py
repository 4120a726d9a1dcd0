"""Answers that came when nobody waited for them any more: of invocations that a gateway before this one began, or that were taken
for lost. Kept for a while, bounded, for whoever asks again by the same id."""

from __future__ import annotations

from collections import OrderedDict

from weft.client.invocations import Answer
from weft.contracts.clock import Clock

KEPT_SECONDS = 300.0
KEPT_BYTES = 32 * 2**20
_EACH_BYTES = 512  # what keeping one takes beside its payload


class Bygone:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, str, Answer]] = OrderedDict()
        self._bytes = 0

    def keep(self, node: str, answer: Answer) -> None:
        """What came from ``node``."""
        self.take(answer.id)
        self._kept[answer.id] = (self._clock.elapsed(), node, answer)
        self._bytes += len(answer.payload) + _EACH_BYTES
        before = self._clock.elapsed() - KEPT_SECONDS
        while self._kept:
            id, (at, _, _) = next(iter(self._kept.items()))
            if at >= before and self._bytes <= KEPT_BYTES:
                return
            self.take(id)

    def take(self, id: str) -> tuple[str, Answer] | None:
        """The node and its answer, which is let go of."""
        kept = self._kept.pop(id, None)
        if kept is None:
            return None
        self._bytes -= len(kept[2].payload) + _EACH_BYTES
        return kept[1:]
