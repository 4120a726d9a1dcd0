"""The database with the history of metrics, as the API server asks it: so many queries at once, and so many of one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weft.contracts.clock import Clock
from weft.objects.errors import Throttled
from weft.telemetry.metrics.database import Asker, Database
from weft.trust.credentials import Actor

MOST_AT_ONCE = 16
MOST_OF_ONE = 4  # queries of one person at once


class History:
    """The database of metrics, for those who read it. ``find`` gives it, or raises Unavailable."""

    def __init__(self, find: Callable[[], Database], clock: Clock) -> None:
        self.find = find
        self.asker = Asker(clock, MOST_AT_ONCE)
        self._busy: Counter[str] = Counter()

    @contextmanager
    def taking_turn(self, actor: Actor) -> Iterator[None]:
        """Raises Throttled if too many queries are under way, the person's or everybody's."""
        who = actor.user.uid if actor.user is not None else actor.id
        if self._busy[who] >= MOST_OF_ONE or self._busy.total() >= MOST_AT_ONCE:
            whose = "yours" if self._busy[who] >= MOST_OF_ONE else "other people's"
            raise Throttled(
                f"too many queries are under way, {whose}", hint="try again when one is answered", retry_after_seconds=1
            )
        self._busy[who] += 1
        try:
            yield
        finally:
            self._busy[who] -= 1
            if not self._busy[who]:
                del self._busy[who]
