"""How long work on a repository waits for a place that doesn't answer, and whom it tells."""

from __future__ import annotations

import threading
from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.objects.errors import WeftError

WAIT_SECONDS = 2700.0  # shorter than a lease without renewal, or a clean-up could take the waiting writer for dead
_PAUSES = (1.0, 2.0, 5.0, 10.0)
UNREACHABLE = "repositoryUnavailable"


class Patience:
    """``report`` gets the reason while the place is away, and "" once it answers again. Without it nobody waits. Any thread may
    call; all share one outage."""

    def __init__(self, clock: Clock, report: Callable[[str], None] | None = None) -> None:
        self._clock, self._report = clock, report
        self._since: float | None = None
        self._lock = threading.Lock()

    def wait(self, problem: Exception, tries: int) -> bool:
        """Wait before the next of so far ``tries``; False: give up, since waiting doesn't help or took too long."""
        if self._report is None or not isinstance(problem, WeftError) or problem.token != UNREACHABLE:
            return False
        with self._lock:
            is_new = self._since is None
            self._since = self._clock.elapsed() if self._since is None else self._since
            if self._clock.elapsed() - self._since > WAIT_SECONDS:
                return False
        if is_new:
            self._report(str(problem))
        threading.Event().wait(_PAUSES[min(tries, len(_PAUSES)) - 1])
        return True

    def end(self) -> None:
        """It answered."""
        with self._lock:
            was_away, self._since = self._since is not None, None
        if was_away and self._report is not None:
            self._report("")
