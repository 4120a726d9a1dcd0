"""The line to the server: whether it works, and who tries again when. While it doesn't, the reports alone try, and what the agent
follows waits until one is answered: so a node that comes back reports before it reads, and few tries are made for nothing.

Pauses are drawn between nothing and a bound that grows ("full jitter"), so nodes that were cut off together don't come back in
the same instant. Threads note answers and wait here.
"""

from __future__ import annotations

import random
import threading

from weft.contracts.clock import Clock

SHORT_CEILING_SECONDS = 5.0
LONG_CEILING_SECONDS = 8.0  # with the 10 s of a report that is lost, a node is back within 20 s
LONG_AFTER_SECONDS = 600.0
LEAST_SECONDS = 0.05
WATCH_CEILING_SECONDS = 2.0  # of what is followed, while reports are answered
LOOK_SECONDS = 60.0
_MOST_DOUBLINGS = 10


class Line:
    """``seed`` makes the pauses those of an earlier run, for tests."""

    def __init__(self, clock: Clock, seed: str | None = None) -> None:
        self._clock = clock
        self._draw = random.Random(seed)  # noqa: S311 (spreads load)
        self._works = threading.Event()
        self._works.set()
        self._closed = threading.Event()
        self._failed_at: float | None = None  # the first try without an answer (clock's elapsed seconds)

    @property
    def works(self) -> bool:
        """Whether the newest report was answered, or none was made yet."""
        return self._works.is_set()

    def note_answer(self) -> None:
        self._failed_at = None
        self._works.set()

    def note_failure(self) -> None:
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
        """In a thread: return when it is time to follow the server again, after so many tries."""
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
