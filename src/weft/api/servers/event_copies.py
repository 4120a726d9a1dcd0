"""Copies of the other servers' events: each server's journal has those of all, so they are read in one place, and outlive the
server that wrote them. Reads the other servers, once a second; writes the journal."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import msgspec

from weft.client.server.others import OtherServers
from weft.contracts.clock import Clock
from weft.objects.errors import Unavailable
from weft.telemetry.journal import Record, SqliteJournal

EVERY_SECONDS = 1.0
MOST = 1000  # events of one answer
_log = logging.getLogger(__name__)


class OwnEvents(msgspec.Struct):
    """The answer of a server to another one: its own events, and which journal they are in."""

    journal: str
    items: list[Record]


class EventCopies:
    def __init__(self, journal: SqliteJournal, others: OtherServers, clock: Clock) -> None:
        self._journal, self._others, self._clock = journal, others, clock
        self.away: list[str] = []  # servers whose newest events may be missing
        self._troubled: set[str] = set()  # servers whose events can't be copied, and the log has it

    async def run(self) -> None:
        """Copy until cancelled."""
        while True:
            names = self._others.list_all()
            whole = await asyncio.gather(*(self._copy(name) for name in names))
            self.away = [name for name, is_whole in zip(names, whole, strict=True) if not is_whole]
            await self._clock.sleep(EVERY_SECONDS)

    async def _copy(self, name: str) -> bool:
        """Copy what server ``name`` has; whether that is all."""
        try:
            journal, reached = await asyncio.to_thread(self._journal.find_copied, name)
            while True:
                answer = await self._others.ask(name, "GET", f"/v1/events?since={reached}&limit={MOST}")
                if answer.status != 200:
                    return False
                own = msgspec.json.decode(answer.body, type=OwnEvents)
                if own.journal != journal and reached:  # a damaged one was replaced
                    journal, reached = own.journal, 0
                    continue
                journal = own.journal
                if own.items:
                    await asyncio.to_thread(self._journal.copy, name, journal, own.items)
                    reached = own.items[-1].id
                if len(own.items) < MOST:
                    self._troubled.discard(name)
                    return True
        except Unavailable:
            return False
        except (msgspec.MsgspecError, sqlite3.Error) as problem:
            if name not in self._troubled:
                _log.warning("events of server %s can't be copied: %s", name, problem)
            self._troubled.add(name)
            return False
