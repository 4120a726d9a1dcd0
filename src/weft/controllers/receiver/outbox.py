"""Messages that wait for a receiver, oldest first: the notifications of its rules, and the events of its project. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec

from weft.controllers.receiver.message import Message, render_event
from weft.informer.view import Item
from weft.kinds.receiver import JournalPosition, ReceiverSpec, has_events, wants_event
from weft.telemetry.journal import Record

MOST_READ = 500  # events at once
NOT_READING = JournalPosition(journal="-")  # of a receiver without events: if it gets some later, those from then on


class EventReader(Protocol):
    """The journal of this server, with copies of the other servers' events, as ``telemetry/journal.py`` has it."""

    def read_id(self) -> str: ...

    def find_newest(self) -> int: ...

    def find_place(self, at: float) -> int: ...

    def read(
        self, *, since: int | None = None, about: str = "", projects: Collection[str] | None = None, limit: int = 1000
    ) -> list[Record]: ...


class Waiting(msgspec.Struct, frozen=True):
    """One thing to send, and what to note once that is over: a position in the journal, or the rule's key."""

    message: Message
    position: JournalPosition | None = None
    rule: str = ""


class EventsRead(msgspec.Struct, frozen=True):
    """``reached``: where to read on, once all that is in ``waiting`` is sent."""

    reached: JournalPosition
    waiting: Sequence[Waiting] = ()
    more: bool = False


async def read_events(journal: EventReader, receiver: Item, reached: JournalPosition) -> EventsRead:
    """The events after ``reached`` that it gets. In another server's journal it begins at the time that was reached."""
    return await asyncio.to_thread(_read, journal, receiver, reached)


def _read(journal: EventReader, receiver: Item, reached: JournalPosition) -> EventsRead:
    spec = receiver.spec(ReceiverSpec)
    if not has_events(spec):
        return EventsRead(NOT_READING)
    own, newest, since = journal.read_id(), journal.find_newest(), 0.0
    if reached.journal == NOT_READING.journal:
        reached = JournalPosition(journal=own, id=newest)
    elif reached.journal != own:
        since = reached.at if reached.journal else receiver.envelope.created_at
        reached = JournalPosition(journal=own, id=journal.find_place(since), at=since)
    if newest <= reached.id:
        return EventsRead(reached)
    projects = None if spec.all_projects else [receiver.envelope.project or ""]
    records = journal.read(since=reached.id, projects=projects, limit=MOST_READ)
    more = len(records) == MOST_READ
    waiting = [
        Waiting(render_event(receiver.uid, own, record), JournalPosition(journal=own, id=record.id, at=record.at))
        for record in records
        if wants_event(spec, record.object.kind, record.reason)
        and record.object.uid != receiver.uid
        and record.at >= since  # a copy may come after newer events
    ]
    last = records[-1].id if more else max([newest, *(record.id for record in records)])
    at = max([reached.at, *(record.at for record in records)])
    return EventsRead(JournalPosition(journal=own, id=last, at=at), waiting, more)
