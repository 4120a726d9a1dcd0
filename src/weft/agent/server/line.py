"""The line to the server: whether it works, and who tries again when. While it doesn't, the reports alone try, and what the agent
follows waits until one is answered: so a node that comes back reports before it reads, and few tries are made for nothing.

A report that a connected server doesn't answer in time has longer the next time: the server may have too many at once, and what it
did for one that was given up was for nothing.

Pauses are drawn between nothing and a bound that grows ("full jitter"), so nodes that were cut off together don't come back in
the same instant. Threads note answers and wait here.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from weft.contracts.clock import Clock

REPORT_SECONDS = (10.0, 20.0, 30.0)  # for the answer to a report; the next one each time the server was silent
SHORT_CEILING_SECONDS = 5.0
LONG_CEILING_SECONDS = 8.0  # with the 10 s of a report on a line that is cut, a node is back within 20 s
LONG_AFTER_SECONDS = 600.0
LEAST_SECONDS = 0.05
WATCH_CEILING_SECONDS = 2.0  # of what is followed, while reports are answered
LOOK_SECONDS = 60.0
_MOST_DOUBLINGS = 10


class ServerLine:
    """``seed`` makes the pauses those of an earlier run, for tests."""

    def __init__(self, clock: Clock, seed: str | None = None, report_seconds: Sequence[float] = REPORT_SECONDS) -> None:
        self._clock = clock
        self._report_seconds, self._unanswered = report_seconds, 0
        self._draw = random.Random(seed)  # noqa: S311 (spreads load)
        self._works = threading.Event()
        self._works.set()
        self._closed = threading.Event()
        self._failed_at: float | None = None  # the first try without an answer (clock's elapsed seconds)

    @property
    def works(self) -> bool:
        """Whether the newest report was answered, or none was made yet."""
        return self._works.is_set()

    @property
    def connect_seconds(self) -> float:
        """How long a report waits for a connection, and for an answer on a kept one: that may have been cut."""
        return self._report_seconds[0]

    @property
    def answer_seconds(self) -> float:
        """How long it waits for its answer on a connection just made."""
        return self._report_seconds[min(self._unanswered, len(self._report_seconds) - 1)]

    def note_answer(self) -> None:
        self._failed_at, self._unanswered = None, 0
        self._works.set()

    def note_failure(self, *, unanswered: bool = False) -> None:
        """``unanswered``: the server was connected, and didn't answer in time."""
        self._unanswered += unanswered
        if self._failed_at is None:
            self._failed_at = self._clock.elapsed()
        self._works.clear()

    def choose_pause(self, tries: int, first: float = 0.5) -> float:
        """Seconds to wait after so many ``tries`` without an answer."""
        failed_at = self._failed_at
        is_long = failed_at is not None and self._clock.elapsed() - failed_at >= LONG_AFTER_SECONDS
        ceiling = LONG_CEILING_SECONDS if is_long else SHORT_CEILING_SECONDS
        return self._choose(tries, first, ceiling)

    def rest(self, tries: int) -> None:
        """Wait, in a thread, until it is time to follow the server again, after so many tries."""
        if self._works.is_set():
            self._closed.wait(self._choose(tries, 0.1, WATCH_CEILING_SECONDS))
        while not self._works.wait(LOOK_SECONDS):
            pass

    def close(self) -> None:
        """Let go of those that wait."""
        self._closed.set()
        self._works.set()

    def _choose(self, tries: int, first: float, ceiling: float) -> float:
        bound = min(ceiling, first * 2 ** min(max(tries, 1) - 1, _MOST_DOUBLINGS))
        return max(LEAST_SECONDS, self._draw.uniform(0.0, bound))
