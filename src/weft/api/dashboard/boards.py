"""State that all open dashboards share: the rows of kinds, the selections of tables, the counts of streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from weft.api.dashboard.rows import AllRows
from weft.api.dashboard.selection import Query, Selection
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Throttled
from weft.protocol.heartbeat import Use
from weft.trust.credentials import Actor

KEPT_SECONDS = 60.0  # a selection after its last reader
MOST_KEPT = 64  # selections without a viewer
MOST_STREAMS, MOST_OF_PERSON = 8, 64  # of one token, and of all tokens of a person
_SWEEP_SECONDS = 15.0


class Boards:
    def __init__(self, store: Store, clock: Clock) -> None:
        self.rows = AllRows(store, clock)
        self._clock = clock
        self._selections: dict[Query, Selection] = {}
        self._streams: Counter[tuple[str, str]] = Counter()  # by token, and by person
        # By what is seen; kept by those who show them.
        self.summaries: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self.usage: Mapping[str, Use] = {}  # of nodes, by uid …
        self.usage_at = -1.0  # … and when it was read
        self.newest_event, self.events_at = 0, -1.0  # of the journal: its id, and when it was read

    async def select(self, query: Query) -> Selection:
        """The selection that shows ``query``, for all who ask the same. Raises Unavailable."""
        sources = [await self.rows.find(BY_NAME[sight.kind]) for sight in query.sights]
        found = self._selections.get(query)
        if found is None or not found.follows(sources):
            self._evict()
            found = self._selections[query] = Selection(query, sources)
        found.used_at = self._clock.elapsed()
        return found

    def _evict(self) -> None:
        idle = [query for query, one in self._selections.items() if not one.viewers]
        excess = max(0, len(idle) - MOST_KEPT + 1)
        for query in sorted(idle, key=lambda query: self._selections[query].used_at)[:excess]:
            self._selections.pop(query).close()

    @contextmanager
    def count_stream(self, actor: Actor) -> Iterator[None]:
        """One more stream of ``actor`` while within. Raises Throttled if its token, or the person, has too many."""
        counted = ("token", actor.id), ("person", actor.name)
        for key, most in zip(counted, (MOST_STREAMS, MOST_OF_PERSON), strict=True):
            if self._streams[key] >= most:
                raise Throttled(
                    f"{key[0]} {key[1]} has {most} dashboards open",
                    reason="tooManyStreams",
                    hint="close one of them",
                    retry_after_seconds=5,
                )
        self._streams.update(counted)
        try:
            yield
        finally:
            self._streams.subtract(counted)
            for key in counted:
                if not self._streams[key]:
                    del self._streams[key]

    async def run(self) -> None:
        """Drop what nobody looks at any more, until cancelled; then all."""
        try:
            while True:
                await self._clock.sleep(_SWEEP_SECONDS)
                self.sweep()
        finally:
            for one in self._selections.values():
                one.close()
            self.rows.close()

    def sweep(self) -> None:
        now = self._clock.elapsed()
        for query, one in list(self._selections.items()):
            if one.viewers:
                one.used_at = now
            elif now - one.used_at > KEPT_SECONDS:
                self._selections.pop(query).close()
        self.rows.sweep()
