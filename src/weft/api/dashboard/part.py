"""The parts of what one tab shows: a table, the summary, one object, its events. Each says what is new when it is asked."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from weft.api.auth.authorise import authorise_read
from weft.api.auth.ownership import find_own
from weft.api.context import ApiContext
from weft.api.dashboard.row import Rendered, Row
from weft.api.dashboard.rows import KindRows
from weft.api.dashboard.summary import EVERY_SECONDS, Summary, find_summary, read_usage
from weft.api.dashboard.window import RowWindow
from weft.api.object.narrowing import find_narrowing
from weft.kinds.record import Kind
from weft.objects.envelope import decode_envelope
from weft.objects.errors import WeftError
from weft.objects.identity import check_name, object_key
from weft.trust.credentials import Actor

_POLL_SECONDS = 0.5  # other processes write the journal too, and it can't wake anyone
_FIRST_EVENTS, _MOST_EVENTS = 100, 500
_encoder = msgspec.json.Encoder()


class DashboardPart(Protocol):
    name: str  # of its events
    seconds: float  # how long it may go without being asked

    async def take(self) -> bytes:
        """News since the last call, as JSON; empty: none. The first call gives all."""

    def close(self) -> None: ...

    @property
    def cursor(self) -> str: ...


class TablePart:
    name, seconds = "table", 3600.0

    def __init__(self, window: RowWindow, woken: asyncio.Event) -> None:
        self._window, self._woken = window, woken
        window.selection.viewers.add(woken)

    @property
    def cursor(self) -> str:
        return self._window.selection.cursor

    async def take(self) -> bytes:
        return self._window.take()

    def close(self) -> None:
        self._window.selection.viewers.discard(self._woken)


class SummaryPart:
    name, seconds = "summary", EVERY_SECONDS

    def __init__(self, context: ApiContext, summary: Summary) -> None:
        self._context, self._summary, self._sent = context, summary, b""
        self._viewer = asyncio.Event()  # it is asked once a second, so nothing wakes it
        for selection in summary.selections.values():
            selection.viewers.add(self._viewer)

    @property
    def cursor(self) -> str:
        return self._summary.cursor

    async def take(self) -> bytes:
        body = self._summary.make(self._context.clock.elapsed(), await read_usage(self._context))
        if body == self._sent:
            return b""
        self._sent = body
        return body

    def close(self) -> None:
        for selection in self._summary.selections.values():
            selection.viewers.discard(self._viewer)


class ObjectPart:
    """One object as GET gives it, or null once it is gone."""

    name, seconds = "object", 3600.0

    def __init__(self, context: ApiContext, actor: Actor, rows: KindRows, key: str, woken: asyncio.Event) -> None:
        self._context, self._rows, self._key, self._woken = context, rows, key, woken
        self._own, self._narrow = find_own(actor, rows.kind, "get"), find_narrowing(rows.kind, actor, "get")
        self._is_changed, self._sent = True, b""
        rows.listeners.append(self._note)

    @property
    def cursor(self) -> str:
        return self._rows.cursor

    def _note(self, old: Rendered | None, new: Rendered | None) -> None:
        changed = new or old
        if changed is not None and self._is_it(changed.whole):
            self._is_changed = True
            self._woken.set()

    def _is_it(self, row: Row) -> bool:
        return object_key(row.kind, row.project, row.name) == self._key

    async def take(self) -> bytes:
        if not self._is_changed:
            return b""
        self._is_changed = False
        try:
            entry = await self._context.store.get(self._key)
        except WeftError:
            self._is_changed = True
            raise
        body = b"null"
        if entry is not None and (self._own is None or self._own(entry.value)):
            value = self._narrow(entry.value) if self._narrow else entry.value
            body = _encoder.encode(decode_envelope(value, entry.revision))
        if body == self._sent:
            return b""
        self._sent = body
        return body

    def close(self) -> None:
        self._rows.listeners.remove(self._note)


class EventsPart:
    """The journal's newest records of a project or an object, then those that come."""

    name, seconds = "events", _POLL_SECONDS

    def __init__(self, context: ApiContext, projects: frozenset[str] | None, about: str) -> None:
        self._context, self._projects, self._about = context, projects, about
        self._reached: int | None = None
        self.cursor = ""

    async def take(self) -> bytes:
        newest = await self._find_newest()
        if self._reached is not None and newest <= self._reached:
            return b""
        limit = _FIRST_EVENTS if self._reached is None else _MOST_EVENTS
        records = await self._context.journal.read_soon(
            since=self._reached, about=self._about, projects=self._projects, limit=limit
        )
        is_first = self._reached is None
        full = len(records) == limit and not is_first
        self._reached = records[-1].id if full else max(newest, records[-1].id if records else 0)
        return _encoder.encode(records) if records or is_first else b""

    async def _find_newest(self) -> int:
        """The id of the journal's newest record, read twice a second for all."""
        boards, now = self._context.boards, self._context.clock.elapsed()
        if now - boards.events_at >= _POLL_SECONDS * 0.9:
            boards.events_at = now
            boards.newest_event = await asyncio.to_thread(self._context.journal.find_newest)
        return boards.newest_event

    def close(self) -> None:
        pass


async def open_summary(context: ApiContext, actor: Actor, project: str | None) -> SummaryPart:
    return SummaryPart(context, await find_summary(context, actor, project))


async def open_object(
    context: ApiContext, actor: Actor, kind: Kind, project: str | None, name: str, woken: asyncio.Event
) -> ObjectPart:
    """Raises Forbidden as GET does, InvalidInput."""
    project = check_name(project or "default", "show.object.project") if kind.scope == "project" else None
    await authorise_read(context, actor, kind, project, name, {})
    key = object_key(kind.name, project, name)
    return ObjectPart(context, actor, context.boards.rows.follow(kind), key, woken)


def open_events(context: ApiContext, actor: Actor, project: str | None, about: str) -> EventsPart:
    """Raises Forbidden as GET /v1/events does."""
    actor.require_somewhere("event:list", "read the journal")
    projects = actor.find_projects("event:list")
    if project is not None:
        actor.require("event:list", project, "read the journal")
        projects = frozenset((project,))
    return EventsPart(context, projects, about)
