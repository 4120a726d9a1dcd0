"""The rows that a table shows, in order: chosen once for all who see the same, and kept in order change by change. Does no I/O."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec

from weft.api.dashboard.row import AGE, KIND, NAME, SETTLED, Key, Rendered, Row, find_place
from weft.api.dashboard.rows import KindRows
from weft.api.dashboard.sight import Sight
from weft.contracts.store import revision_of
from weft.objects.quantity import SortKey, sort_key

PHASE, PROJECT = "PHASE", "PROJECT"
_MOST_PAGES = 32
Page = tuple[Row, ...]


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Query of a table; equal ones are one selection. ``words`` are in small letters."""

    sights: tuple[Sight, ...]
    words: tuple[str, ...] = ()
    where: str = ""
    title: str = NAME
    descending: bool = False
    ended: bool = False


class Selection:
    """``rows`` are sorted ascending by their keys. ``version`` grows with each change."""

    def __init__(self, query: Query, sources: Sequence[KindRows]) -> None:
        self.query, self._sources = query, sources
        self.rows: list[Row] = []
        self.phases: Counter[str] = Counter()  # of all that the words let through, whatever ``where`` says
        self.unsettled: dict[str, Row] = {}  # by uid: what is failed, or goes on
        self.version = 0
        self.used_at = 0.0
        self.viewers: set[asyncio.Event] = set()  # set at each change
        self.changes: dict[Hashable, bytes] = {}  # up to this version, encoded, by what they were asked for
        self._places = {sight.kind: place for place, sight in enumerate(query.sights)}
        self._pages: dict[tuple[int, int], Page] = {}
        self._listeners: list[Callable[[Rendered | None, Rendered | None], None]] = []
        self._fill()

    @property
    def cursor(self) -> str:
        """The newest position in the store that all its rows have reached or passed."""
        return find_newest(source.cursor for source in self._sources)

    @property
    def total(self) -> int:
        return len(self.rows)

    def page(self, offset: int, limit: int) -> Page:
        """The rows from ``offset`` in the order that was asked for."""
        known = self._pages.get((offset, limit))
        if known is None:
            if self.query.descending:
                end = max(0, len(self.rows) - offset)
                known = tuple(reversed(self.rows[max(0, end - limit) : end]))
            else:
                known = tuple(self.rows[offset : offset + limit])
            if len(self._pages) >= _MOST_PAGES:
                self._pages.clear()
            self._pages[offset, limit] = known
        return known

    def follows(self, sources: Sequence[KindRows]) -> bool:
        return all(one is other for one, other in zip(self._sources, sources, strict=True))

    def close(self) -> None:
        """Follow no more changes."""
        for source, listener in zip(self._sources, self._listeners, strict=True):
            source.listeners.remove(listener)
        self._listeners = []

    def _fill(self) -> None:
        for sight, source in zip(self.query.sights, self._sources, strict=True):
            rows = (row for made in source.found.values() if (row := sight.pick(made)) is not None)
            self.rows += [row for row in rows if self._admit(row)]
            listener = self._follow(sight)
            source.listeners.append(listener)
            self._listeners.append(listener)
        self.rows.sort(key=self._key)

    def _follow(self, sight: Sight) -> Callable[[Rendered | None, Rendered | None], None]:
        def change(old: Rendered | None, new: Rendered | None) -> None:
            before, after = sight.pick(old), sight.pick(new)
            if before is after:
                return
            gone = before is not None and self._remove(before)
            come = after is not None and self._add(after)
            if gone or come:
                self._touch()

        return change

    def _touch(self) -> None:
        self.version += 1
        self._pages.clear()
        self.changes.clear()
        for viewer in self.viewers:
            viewer.set()

    def _admit(self, row: Row) -> bool:
        """Count a row that the words let through; whether it is shown."""
        if not self._matches(row):
            return False
        self.phases[row.phase] += 1
        if row.health not in SETTLED or row.operation is not None:
            self.unsettled[row.uid] = row
        return not self.query.where or row.phase == self.query.where

    def _matches(self, row: Row) -> bool:
        return (self.query.ended or not row.over) and all(word in row.text for word in self.query.words)

    def _add(self, row: Row) -> bool:
        if self._admit(row):
            self.rows.insert(bisect_left(self.rows, self._key(row), key=self._key), row)
            return True
        return self._matches(row)

    def _remove(self, row: Row) -> bool:
        if not self._matches(row):
            return False
        self.phases[row.phase] -= 1
        if not self.phases[row.phase]:
            del self.phases[row.phase]
        self.unsettled.pop(row.uid, None)
        place = bisect_left(self.rows, self._key(row), key=self._key)
        if place < len(self.rows) and self.rows[place] is row:
            del self.rows[place]
        return True

    def _key(self, row: Row) -> Key:
        first = find_key(row, self.query.title)
        if self.query.descending:  # empty cells stay last
            first = (-first[0], first[1], first[2])
        return first, self._places[row.kind], row.order


def find_key(row: Row, title: str) -> SortKey:
    """The place of ``row`` in the order of the column with that title: quantities as numbers, nothing last."""
    key = row.keys.get(title)
    if key is None:
        key = row.keys[title] = _make_key(row, title)
    return key


def _make_key(row: Row, title: str) -> SortKey:
    if title == AGE:
        return 0, -row.created_at, ""
    if title == KIND:
        return sort_key(row.kind)
    if (place := find_place(row.kind, (title,))) is not None:
        return sort_key(row.cells[place])
    return sort_key({PHASE: row.phase, PROJECT: row.project or ""}.get(title, ""))


def find_newest(cursors: Iterable[str]) -> str:
    """The one with the highest revision; "" for none."""
    return max(filter(None, cursors), key=revision_of, default="")
