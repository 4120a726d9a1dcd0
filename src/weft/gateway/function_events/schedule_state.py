"""When each schedule was last fired, and the events that this made until they are done: in the store, so that one gateway of all
fires, and another goes on where a dead one was.

A firing is one commit, under the lease of the gateway that fires: the time and the event. Its event is one gateway's, which runs it
from its own queue; an event of a gateway that is gone is given to the one that fires. Keys: ``/-schedule/UID/ENTRY`` and
``/-event/ID``, of no object."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from weft.contracts.store import Absent, AtRevision, Delete, Entry, LeaseHeld, Precondition, Put, Store
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import Event
from weft.protocol.function_counts import LEASE_PREFIX
from weft.protocol.server.presence import SCHEDULES

LEASE_SECONDS = 10.0
_FIRED, _EVENT = "/-schedule/", "/-event/"
Key = tuple[str, str]  # the function's uid, the entry's digest


class Fired(NamedTuple):
    """``last`` is the time (unix seconds) that it was last fired for."""

    last: float
    revision: int


class _StoredEvent(msgspec.Struct, frozen=True):
    """An event of the gateway ``gateway``. The payload is JSON as it is: in another form it might be too large for the store."""

    gateway: str
    project: str
    name: str
    qualifier: str
    payload: msgspec.Raw
    accepted_at: float


class ScheduleState:
    """``name``: of this gateway, whose lease is ``gateway/NAME``. ``file`` has what an earlier weft kept."""

    def __init__(self, store: Store, file: EventFile, name: str) -> None:
        self._store, self._file, self._name = store, file, name
        self._fence = 0

    async def lead(self) -> int:
        """Take or renew the lease; its fence, or 0 while another gateway has it."""
        lease = await self._store.grant(SCHEDULES, self._name, LEASE_SECONDS)
        self._fence = lease.fence if lease is not None else 0
        return self._fence

    async def give_back(self) -> None:
        """Let another gateway lead, if this one does. Raises StoreUnavailable."""
        if self._fence:
            await self._store.release(SCHEDULES, self._name)

    async def known(self) -> dict[Key, Fired]:
        """When each schedule was last fired."""
        found = {}
        for entry in (await self._store.list(_FIRED)).entries:
            function, _, digest = entry.key.removeprefix(_FIRED).partition("/")
            found[function, digest] = Fired(msgspec.json.decode(entry.value, type=float), entry.revision)
        for function, digest, last in await self._file.do(_read_earlier):
            if (key := (function, digest)) not in found:
                found[key] = await self.begin(key, last)
        await self._file.do(_drop_earlier)
        return found

    async def begin(self, key: Key, at: float) -> Fired:
        """Count a schedule's runs from ``at`` on."""
        return Fired(at, await self._commit([Put(_place(key), msgspec.json.encode(at))], [Absent(_place(key))]))

    async def fire(self, event: Event, key: Key, last: float, before: Fired) -> Fired:
        """Record the run and its event, both or neither. Raises PreconditionFailed when it isn't ours to fire, and StoreUnavailable
        when it may be recorded: ``known`` shows it."""
        writes = [Put(_place(key), msgspec.json.encode(last)), self._put(event)]
        return Fired(last, await self._commit(writes, [AtRevision(_place(key), before.revision)]))

    async def forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            await self._commit([Delete(_place(key))], [])

    async def take_over(self) -> list[Event]:
        """This gateway's events that aren't done, with those of gateways that are gone, which are its own from now on."""
        there = {lease.name.removeprefix(LEASE_PREFIX) for lease in await self._store.leases(LEASE_PREFIX)}
        found = []
        for entry in (await self._store.list(_EVENT)).entries:
            stored, event = _read(entry)
            if stored.gateway != self._name:
                if stored.gateway in there:
                    continue
                await self._commit([self._put(event)], [AtRevision(entry.key, entry.revision)])
            found.append(event)
        return found

    async def has(self, id: str) -> bool:
        """Whether a schedule's event is this gateway's to run: it isn't done, and nobody took it over."""
        entry = await self._store.get(_EVENT + id)
        return entry is not None and _read(entry)[0].gateway == self._name

    async def done(self, id: str) -> None:
        """A schedule's event needs no gateway any more."""
        await self._store.commit([Delete(_EVENT + id)])

    def _put(self, event: Event) -> Put:
        payload = msgspec.Raw(event.payload)
        stored = _StoredEvent(self._name, event.project, event.name, event.qualifier, payload, event.accepted_at)
        return Put(_EVENT + event.id, msgspec.json.encode(stored))

    async def _commit(self, writes: Sequence[Put | Delete], preconditions: Sequence[Precondition]) -> int:
        return await self._store.commit(writes, [LeaseHeld(SCHEDULES, self._fence), *preconditions])


def _place(key: Key) -> str:
    return f"{_FIRED}{key[0]}/{key[1]}"


def _read(entry: Entry) -> tuple[_StoredEvent, Event]:
    stored = msgspec.json.decode(entry.value, type=_StoredEvent)
    event = Event(
        id=entry.key.removeprefix(_EVENT),
        project=stored.project,
        name=stored.name,
        qualifier=stored.qualifier,
        payload=bytes(stored.payload),
        origin="schedule",
        accepted_at=stored.accepted_at,
        due_at=stored.accepted_at,
    )
    return stored, event


def _read_earlier(db: sqlite3.Connection) -> list[tuple[str, str, float]]:
    return db.execute("SELECT function, entry, last FROM fired").fetchall()


def _drop_earlier(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM fired")
