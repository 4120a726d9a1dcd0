"""Keeps a View equal to the store: one list, then one watch of everything, so the view always is one revision, whole.

Reads the store, writes nothing. It calls its listeners with the objects that changed, in order, after the view has changed;
they only take notes, and plans read the view. A lost connection costs time; a lost history (compacted, or a restored
store) costs a new list, and the difference goes to the listeners like any other change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.store import Batch, Compacted, Entry, Store, epoch_of, revision_of
from weft.informer.view import Changed, Item, View
from weft.objects.errors import StoreUnavailable, WeftError
from weft.objects.identity import kind_prefix

Listener = Callable[[Sequence[Changed]], None]

_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_BATCHES_AT_ONCE = 64  # then other tasks get their turn
_ENTRIES_AT_ONCE = 1_000
_NOWHERE = "/-/"  # a prefix without keys: a list of it gives only the present cursor

_log = logging.getLogger(__name__)


class Cache:
    """``view`` follows ``store`` while ``run`` runs; before the first list it is empty and ``epoch`` is ""."""

    def __init__(self, store: Store, view: View, clock: Clock) -> None:
        self.view = view
        self.revision = 0
        self.epoch = ""
        self._epoch_at = 0.0
        self._store = store
        self._clock = clock
        self._listeners: list[tuple[Listener, tuple[str, ...]]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._relisted = asyncio.Event()
        self._expected: dict[str, tuple[bytes, Item]] = {}

    @property
    def age_seconds(self) -> float:
        """How long this process has followed the store's present history."""
        return self._clock.elapsed() - self._epoch_at

    def subscribe(self, listener: Listener, kinds: Iterable[str] = ()) -> Callable[[], None]:
        """Call ``listener`` with every change from now on, or with those of ``kinds``, in this order; the result ends that."""
        entry = (listener, tuple(kinds))
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry)

    def expect(self, value: bytes, item: Item) -> None:
        """``value``, which is about to be written, decodes to ``item``: the view takes that when the watch brings the value."""
        self._expected[item.key] = (value, item)

    def expect_no_more(self, items: Iterable[Item]) -> None:
        """They were not written, or the view has them."""
        for item in items:
            expected = self._expected.get(item.key)
            if expected is not None and expected[1] is item:
                del self._expected[item.key]

    async def reached(self, revision: int) -> None:
        """Wait until the view has all changes up to ``revision``."""
        if self.epoch and self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        await future

    async def catch_up(self, revision: int | None = None) -> None:
        """Wait until the view has all that was committed before this call, in the store's present history; with ``revision``,
        all up to that one. Without, it waits for the next change where the store counts leases, too, like etcd.

        Raises StoreUnavailable."""
        while True:
            self._relisted.clear()
            cursor = (await self._store.list(_NOWHERE, limit=1)).cursor
            if epoch_of(cursor) == self.epoch:
                return await self.reached(revision_of(cursor) if revision is None else revision)
            await self._relisted.wait()

    async def run(self) -> None:
        """Follow the store for ever."""
        pause_seconds = _SHORTEST_PAUSE_SECONDS
        cursor = ""
        while True:
            try:
                if not cursor:
                    cursor = await self._list()
                    pause_seconds = _SHORTEST_PAUSE_SECONDS
                count = 0
                async with aclosing(self._store.watch("/", cursor)) as batches:
                    async for batch in batches:
                        if any(change.value is not None and self.view.widens(change.key) for change in batch.changes):
                            cursor = ""
                            break
                        self._take(batch)
                        cursor = batch.cursor
                        pause_seconds = _SHORTEST_PAUSE_SECONDS
                        count += 1
                        if count % _BATCHES_AT_ONCE == 0:
                            await self._clock.sleep(0)
            except Compacted:
                cursor = ""
            except StoreUnavailable as problem:
                _log.info("the store can't be read just now: %s", problem)
                await self._clock.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    async def _list(self) -> str:
        entries, cursor = await self._read()
        epoch = epoch_of(cursor)
        restored = epoch != self.epoch
        changes: list[Changed] = []
        listed = set()
        for entry in entries:
            listed.add(entry.key)
            known = self.view.get(entry.key)
            if restored or known is None or known.envelope.revision != entry.revision:
                self._put(entry.key, entry.value, entry.revision, changes)
        for key in [key for key in self.view.keys() if key not in listed]:  # noqa: SIM118 (a View is no dict)
            self._drop(key, changes)
        if restored:
            self._epoch_at = self._clock.elapsed()
        self.epoch = epoch
        self.revision = revision_of(cursor)
        self._call_listeners(changes)
        self._relisted.set()
        # Nobody may wait for a revision of a history that is gone.
        self._wake(None if restored else self.revision)
        return cursor

    async def _read(self) -> tuple[list[Entry], str]:
        """All objects of the view's kinds at one instant, and the cursor from which a watch goes on. In pages, so that objects of
        other kinds are never here all at once."""
        entries: list[Entry] = []
        after = None
        while True:
            page = await self._store.list("/", limit=_ENTRIES_AT_ONCE, after=after)
            if any(self.view.widens(entry.key) for entry in page.entries):
                entries, after = [], None  # what it calls for may stand before it
                continue
            entries += [entry for entry in page.entries if self.view.takes(entry.key)]
            if page.next is None:
                return entries, page.cursor
            after = page.next

    def _take(self, batch: Batch) -> None:
        changes: list[Changed] = []
        for change in batch.changes:
            if change.value is None:
                self._drop(change.key, changes)
            else:
                self._put(change.key, change.value, batch.revision, changes)
        self.revision = batch.revision
        if changes:
            self._call_listeners(changes)
        if self._waiting:
            self._wake(batch.revision)

    def _put(self, key: str, value: bytes, revision: int, changes: list[Changed]) -> None:
        expected = self._expected.pop(key, None)
        if expected is not None and expected[0] == value:
            item = expected[1]
            item.envelope.revision = revision
            changes.append(self.view.put_item(key, item))
            return
        try:
            changed = self.view.put(key, value, revision)
        except msgspec.DecodeError as problem:
            if key.startswith(kind_prefix("allocation")):
                # Capacity of an allocation that isn't seen would be given twice: better no decision than a wrong one.
                raise WeftError(f"{key} can't be read by this version of weft: {problem}") from problem
            _log.error("%s can't be read, so its last readable state is used: %s", key, problem)
            return
        if changed is not None:
            changes.append(changed)

    def _drop(self, key: str, changes: list[Changed]) -> None:
        changed = self.view.drop(key)
        if changed is not None:
            changes.append(changed)

    def _call_listeners(self, changes: Sequence[Changed]) -> None:
        by_kind: dict[str, list[Changed]] = {}
        for change in changes:
            by_kind.setdefault(change.kind, []).append(change)
        for listener, kinds in tuple(self._listeners):
            touched = [kind for kind in kinds if kind in by_kind]
            if touched:
                listener([change for kind in touched for change in by_kind[kind]])
            elif not kinds and changes:
                listener(changes)

    def _wake(self, revision: int | None) -> None:
        later: list[tuple[int, asyncio.Future[None]]] = []
        for wanted, future in self._waiting:
            if revision is not None and wanted > revision:
                later.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = later


def whole(view: View, kinds: Iterable[str]) -> list[Changed]:
    """All objects of ``kinds`` as if they had just appeared: for a new listener."""
    return [Changed(key, None, item) for kind in kinds for key, item in view.of_kind(kind).items()]
