"""Instances' output that no gateway has confirmed as written down: it is sent again on the gateway's next connection.

Numbered, so that one message confirms everything up to a number. Bounded for each recipe and for all: excess output is lost, and
costs no other recipe its lines.
"""

from __future__ import annotations

from collections import Counter, deque

import msgspec

from weft.contracts.clock import Clock
from weft.protocol.invocations import Printed

MOST_BYTES = 4 << 20
MOST_OF_ONE_BYTES = 1 << 20  # of one recipe
_EACH_BYTES = 512  # overhead of one beside its text


class PendingOutput:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, Printed]] = deque()  # with the time it was printed
        self._bytes: Counter[str] = Counter()  # by digest
        self._all_bytes = 0
        self._serial = int(clock.now() * 1e6)  # higher than an earlier agent's

    def add(self, printed: Printed) -> Printed:
        """``printed``, which may have an age already, with its serial; kept if it fits."""
        self._serial += 1
        numbered = msgspec.structs.replace(printed, serial=self._serial)
        weight = _weigh(numbered)
        mine = self._bytes[printed.digest] + weight
        if mine <= MOST_OF_ONE_BYTES and self._all_bytes + weight <= MOST_BYTES:
            self._kept.append((self._clock.elapsed() - printed.age, numbered))
            self._bytes[printed.digest] = mine
            self._all_bytes += weight
        return numbered

    def let_go(self, serial: int) -> None:
        """Drop everything up to ``serial``: it is written down."""
        while self._kept and self._kept[0][1].serial <= serial:
            _, printed = self._kept.popleft()
            weight = _weigh(printed)
            self._all_bytes -= weight
            self._bytes[printed.digest] -= weight
            if not self._bytes[printed.digest]:
                del self._bytes[printed.digest]

    def list(self) -> list[Printed]:
        """All kept output in order, each with its age."""
        now = self._clock.elapsed()
        return [msgspec.structs.replace(printed, age=now - at) for at, printed in self._kept]


def _weigh(printed: Printed) -> int:
    return len(printed.text) + _EACH_BYTES
