"""The rows of each kind that somebody looks at: listed once, then kept by one watch of the store for all viewers.

Woken by the store. A kind that nobody looks at is dropped after a while. Lists in pages and renders a few objects at a time, so
that other requests don't wait; while the store is away, the rows stay as they were.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from weft.api.dashboard.row import Rendered, render
from weft.contracts.clock import Clock
from weft.contracts.store import Compacted, Store, epoch_of
from weft.kinds.record import Kind
from weft.objects.errors import Unavailable, WeftError
from weft.objects.identity import kind_prefix

KEPT_SECONDS = 300.0  # after the last viewer
_FIRST_SECONDS = 20.0  # that a viewer waits for the first list
_PAGE = 500
_AT_ONCE = 50  # objects rendered before others get their turn
_PAUSE_SECONDS = 0.5
Listener = Callable[[Rendered | None, Rendered | None], None]
_log = logging.getLogger("weft.api.dashboard")


class KindRows:
    """``found`` has the objects of a kind by key, once ``ready`` is set; each change goes to ``listeners``, as old and new."""

    def __init__(self, store: Store, kind: Kind, clock: Clock) -> None:
        self.kind = kind
        self.found: dict[str, Rendered] = {}
        self.cursor = ""
        self.ready = asyncio.Event()
        self.listeners: list[Listener] = []
        self.used_at = clock.elapsed()
        self._store, self._clock = store, clock
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        cursor = ""
        while True:
            try:
                if not cursor:
                    cursor = await self._list()
                count = 0
                async with aclosing(self._store.watch(kind_prefix(self.kind.name), cursor)) as batches:
                    async for batch in batches:
                        for change in batch.changes:
                            made = None if change.value is None else render(self.kind, change.value, batch.revision)
                            self._put(change.key, made)
                        self.cursor = cursor = batch.cursor
                        count += len(batch.changes)
                        if count >= _AT_ONCE:
                            count = 0
                            await self._clock.sleep(0)
            except Compacted:
                cursor = ""
                continue
            except WeftError as problem:
                _log.info("the %s can't be followed just now: %s", self.kind.plural, problem)
            await self._clock.sleep(_PAUSE_SECONDS)

    async def _list(self) -> str:
        """Read all objects, and tell the difference. The cursor to watch from."""
        prefix, after, cursor = kind_prefix(self.kind.name), None, ""
        found: dict[str, Rendered] = {}
        while True:
            page = await self._store.list(prefix, limit=_PAGE, after=after)
            for start in range(0, len(page.entries), _AT_ONCE):
                for entry in page.entries[start : start + _AT_ONCE]:
                    known = self.found.get(entry.key) if epoch_of(page.cursor) == epoch_of(self.cursor) else None
                    if known is None or known.revision != entry.revision:
                        known = render(self.kind, entry.value, entry.revision)
                    if known is not None:
                        found[entry.key] = known
                await self._clock.sleep(0)
            cursor, after = page.cursor, page.next
            if after is None:
                break
        self.cursor = cursor
        for key in [key for key in self.found if key not in found]:
            self._put(key, None)
        for key, made in found.items():
            if self.found.get(key) is not made:
                self._put(key, made)
        self.ready.set()
        return cursor

    def _put(self, key: str, made: Rendered | None) -> None:
        old = self.found.pop(key, None) if made is None else self.found.get(key)
        if made is not None:
            self.found[key] = made
        if old is not None or made is not None:
            for listener in tuple(self.listeners):
                try:
                    listener(old, made)
                except Exception:  # a fault in one viewer's table must not keep the change from the others
                    _log.exception("a change of the %s can't be shown", self.kind.plural)


class AllRows:
    """The kinds that somebody looks at, or did a moment ago."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._kinds: dict[str, KindRows] = {}

    async def find(self, kind: Kind) -> KindRows:
        """The rows of a kind, once they are there. Raises Unavailable while the store doesn't answer."""
        rows = self.follow(kind)
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                await rows.ready.wait()
        except TimeoutError:
            raise Unavailable(
                f"the {kind.plural} can't be read from the store just now", hint="try again", retry_after_seconds=2
            ) from None
        return rows

    def follow(self, kind: Kind) -> KindRows:
        """The rows of a kind, which may not be there yet."""
        rows = self._kinds.get(kind.name)
        if rows is None or rows.task.done():
            rows = self._kinds[kind.name] = KindRows(self._store, kind, self._clock)
        rows.used_at = self._clock.elapsed()
        return rows

    def sweep(self) -> None:
        """Drop what nobody looks at any more."""
        now = self._clock.elapsed()
        for rows in list(self._kinds.values()):
            if rows.listeners:
                rows.used_at = now
            elif now - rows.used_at > KEPT_SECONDS:
                del self._kinds[rows.kind.name]
                rows.task.cancel()

    def close(self) -> None:
        for rows in self._kinds.values():
            rows.task.cancel()
        self._kinds.clear()
