"""Guests' reports of their boot and their process: into its record and on to the driver, at bounded cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import ProcessFacts
from weft.drivers.runtime.qemu.record import GuestRecord

REPORT_SECONDS = 1.0, 30.0  # between two reports that differ: at first, and while the guest goes on sending others


class Report(NamedTuple):
    ready: bool
    boot_id: str | None
    process: ProcessFacts | None


class GuestReports:
    """``save`` writes the record. Once ``is_over`` nothing more is taken: the guest has ended, or is about to be settled."""

    def __init__(
        self,
        record: GuestRecord,
        clock: Clock,
        notify: Callable[[], None],
        save: Callable[[], Coroutine[Any, Any, None]],
        is_over: Callable[[], bool],
    ) -> None:
        self._record, self._clock, self._notify, self._save, self._is_over = record, clock, notify, save, is_over
        self._pending: Report | None = None
        self._passing_on: asyncio.Task[None] | None = None
        self._write: asyncio.Future[None] | None = None

    def take_hello(self, boot_id: str) -> None:
        newest = self._newest()
        self._take(Report(True, boot_id or newest.boot_id, newest.process))  # not every agent knows its boot

    def take_process(self, process: ProcessFacts) -> None:
        self._take(self._newest()._replace(process=process))

    def take_pending(self) -> bool:
        """Bring the record up to the newest report; returns whether there was another."""
        if self._pending is None:
            return False
        self._record.ready, self._record.boot_id, self._record.process_report = self._pending
        self._pending = None
        self._notify()
        return True

    async def stop(self) -> None:
        """Nothing more is passed on or written."""
        if self._passing_on is not None:
            self._passing_on.cancel()
            await asyncio.gather(self._passing_on, return_exceptions=True)
        if self._write is not None:
            await asyncio.gather(self._write, return_exceptions=True)

    def _newest(self) -> Report:
        return self._pending or Report(self._record.ready, self._record.boot_id, self._record.process_report)

    def _take(self, report: Report) -> None:
        """Pass a report on immediately, unless one was passed on just now. A guest may send another a million times a second."""
        if report == self._newest() or self._is_over():
            return
        self._pending = report
        if self._passing_on is None or self._passing_on.done():
            self.take_pending()
            self._passing_on = asyncio.create_task(self._pass_on())

    async def _pass_on(self) -> None:
        pause, longest = REPORT_SECONDS
        more = True
        while more:
            self._write = asyncio.ensure_future(self._save())
            await asyncio.shield(self._write)
            await self._clock.sleep(pause)
            pause, more = min(longest, pause * 2), self.take_pending()
