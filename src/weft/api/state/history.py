"""The database with the history of metrics, as the API server asks it: so many queries at once, and so many of one person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weft.contracts.clock import Clock
from weft.objects.errors import Throttled
from weft.telemetry.metrics.database import Asker, Database, DatabaseEnded
from weft.trust.credentials import Actor

MOST_AT_ONCE = 16
MOST_OF_ONE = 4  # queries of one person at once
BARRED_SECONDS = 180.0  # for people who asked while the database ended: it may have been their query


class History:
    """The database of metrics, for those who read it. ``find`` gives it, or raises Unavailable. ``keep_seconds``: for how long the
    server itself keeps it, as each server of a fabric does; 0: another database is one for all."""

    def __init__(self, find: Callable[[], Database], clock: Clock, keep_seconds: float = 0.0) -> None:
        self.find, self.keep_seconds = find, keep_seconds
        self.asker = Asker(clock, MOST_AT_ONCE)
        self._clock = clock
        self._busy: Counter[str] = Counter()
        self._barred: dict[str, float] = {}  # people: until when

    @contextmanager
    def taking_turn(self, actor: Actor) -> Iterator[None]:
        """Raises Throttled if too many queries are under way, the person's or everybody's, and for some minutes after one of the
        person's was under way when the database ended."""
        who = actor.user.uid if actor.user is not None else actor.id
        self._refuse_barred(who)
        if self._busy[who] >= MOST_OF_ONE or self._busy.total() >= MOST_AT_ONCE:
            whose = "yours" if self._busy[who] >= MOST_OF_ONE else "other people's"
            raise Throttled(
                f"too many queries are under way, {whose}", hint="try again when one is answered", retry_after_seconds=1
            )
        self._busy[who] += 1
        try:
            yield
        except DatabaseEnded:
            self._barred[who] = self._clock.elapsed() + BARRED_SECONDS
            raise
        finally:
            self._busy[who] -= 1
            if not self._busy[who]:
                del self._busy[who]

    def _refuse_barred(self, who: str) -> None:
        now = self._clock.elapsed()
        self._barred = {person: until for person, until in self._barred.items() if until > now}
        if (until := self._barred.get(who)) is not None:
            raise Throttled(
                "a query of yours was under way when the database for metrics ended",
                hint=f"send a smaller query in {until - now:.0f} s",
                retry_after_seconds=until - now,
            )
