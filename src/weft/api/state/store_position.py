"""The store's position, read once for all watchers: the cursor that a bookmark on a quiet watch may promise.

A position is given out only after every change before it has certainly reached the watchers' queues.
"""

from __future__ import annotations

from collections import deque

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.errors import WeftError

_BEAT_SECONDS = 10.0
_SETTLED_BEATS = 3


class StorePosition:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._positions: deque[tuple[float, str]] = deque(maxlen=_SETTLED_BEATS + 1)

    async def run(self) -> None:
        """Read it, again and again, until cancelled."""
        while True:
            at = self._clock.elapsed()
            try:
                self._positions.append((at, (await self._store.list("/project/", limit=1)).cursor))
            except WeftError:
                self._positions.clear()
            await self._clock.sleep(_BEAT_SECONDS)

    def settled_since(self, elapsed_seconds: float) -> str | None:
        """A cursor that a watcher has certainly reached if it got nothing since ``elapsed_seconds`` (of the monotonic clock);
        None if there is none yet."""
        if len(self._positions) <= _SETTLED_BEATS:
            return None
        at, cursor = self._positions[0]
        return cursor if at > elapsed_seconds else None
