"""Gathers what this node's workloads print, and what its agent logs, into the node's store.

Reads the files in which drivers keep consoles and containers' output, from where the store says that they were read; wakes by the
clock. A driver's file outlives this process, so a killed agent loses nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from weft.agent.logs.assemble import Assembled, assemble, end_rests
from weft.agent.logs.inbox import Inbox
from weft.agent.logs.own import OwnLog
from weft.agent.logs.source import count_lines, read_source
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.objects.errors import WeftError
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.segment import Lines
from weft.telemetry.logs.store import LogStore

if TYPE_CHECKING:  # most agents send their lines nowhere
    from weft.agent.logs.syslog import LineSender
    from weft.protocol.migration import LogMark
    from weft.telemetry.logs.export import LogExporter

log = logging.getLogger("weft.agent")
STEP_SECONDS = 0.2
MOST_REST_SECONDS = 0.5  # between two looks at one that prints nothing
KEEP_SECONDS = 1.0
SWEEP_SECONDS = 60.0
REST_SECONDS = 2.0  # then a line that was begun counts as one
MOST_PIECES = 64  # of a workload that leaves: all that its driver keeps is less
AGAIN_SECONDS = 5.0  # after a failure


class PrintingWorkload(msgspec.Struct, frozen=True):
    """One that prints here."""

    uid: str
    what: str
    guest_id: str
    driver: object


class LogCollector:
    """Collector of logs into ``store``: of the workloads in ``table``, and of the node itself."""

    def __init__(
        self, store: LogStore, runtimes: Runtimes, table: AllocationTable, node: str, node_uid: str, clock: Clock
    ) -> None:
        self.node = node
        self.store, self._runtimes, self._table = store, runtimes, table
        self._node_uid, self._clock = node_uid, clock
        self.own = OwnLog(clock)
        self.syslog: LineSender | None = None
        self.inbox = Inbox(clock)  # what guests send
        self.exporter: LogExporter | None = None  # to a collector
        self._expected: dict[str, float] = {}  # by uid: lines of another node may come until then (elapsed seconds)
        self._marks: dict[str, LogMark] = {}  # by uid: how far the other node had come with them
        self._begun: dict[str, float] = {}  # by uid, since when a line has waited for its end (elapsed seconds)
        self._failed: dict[str, float] = {}  # by uid, when it couldn't be read (elapsed seconds)
        self._rests: dict[
            str, tuple[float, float]
        ] = {}  # by uid: when it is looked at again (elapsed seconds), and after how long
        self._reading = threading.Lock()
        self._is_open = False
        self._problem = ""

    async def keep(self) -> None:
        """Gather for ever."""
        self.own.begin()
        kept_at = swept_at = self._clock.elapsed()
        try:
            while True:
                now = self._clock.elapsed()
                keeps, sweeps = now - kept_at >= KEEP_SECONDS, now - swept_at >= SWEEP_SECONDS
                kept_at, swept_at = (now if keeps else kept_at), (now if sweeps else swept_at)
                here = {state.local.spec.workload.uid for state in self._table} if sweeps else None
                workloads, keeps = self._find_workloads(), keeps or sweeps or not self._is_open
                if (
                    workloads or keeps or self.own.has_lines or self.inbox.has_lines
                ):  # else no thread is woken for nothing
                    await asyncio.to_thread(self._gather, workloads, here, keeps=keeps)
                await self._clock.sleep(STEP_SECONDS)
        finally:
            self.own.close()
            for sender in (self.syslog, self.exporter):
                if sender is not None:
                    await asyncio.to_thread(sender.close)
            with self._reading:
                self.store.close()
                self._is_open = False

    async def drain(self, local: LocalAllocation) -> None:
        """Read all that it printed here: its files are about to go. A failure only goes to the log."""
        driver = self._runtimes.find(local)
        if driver is not None:
            await asyncio.to_thread(
                self._drain, PrintingWorkload(local.spec.workload.uid, local.what, local.id, driver)
            )

    def expect(self, uid: str, seconds: float, mark: LogMark | None = None) -> None:
        """Lines that this workload printed on another node are on their way: its own wait for them, for so long at most. ``mark``:
        how far the other node had come."""
        if mark is not None:
            self._marks[uid] = mark
        self._expected[uid] = self._clock.elapsed() + seconds

    def expect_no_more(self, uid: str) -> None:
        self._expected.pop(uid, None)
        self._marks.pop(uid, None)

    def _find_workloads(self) -> list[PrintingWorkload]:
        found: dict[str, PrintingWorkload] = {}
        now = self._clock.elapsed()
        for state in self._table:
            local = state.local
            uid, role = local.spec.workload.uid, local.spec.role
            if state.guest is None or role == "target" or (uid in found and role != "active"):
                continue
            if self._expected.get(uid, now) > now or now - self._failed.get(uid, -AGAIN_SECONDS) < AGAIN_SECONDS:
                continue
            if self._rests.get(uid, (now, 0.0))[0] > now:
                continue
            driver = self._runtimes.find(local)
            if driver is not None:
                found[uid] = PrintingWorkload(uid, local.what, local.id, driver)
        return list(found.values())

    def _gather(self, workloads: Iterable[PrintingWorkload], here: set[str] | None, *, keeps: bool) -> None:
        problems = set()
        with self._reading:
            try:
                self._open()
                if lines := self.own.take():
                    times, text = array("q", [at for at, _ in lines]), b"".join(line for _, line in lines)
                    self._append(self._node_uid, f"node/{self.node}", times, text)
                now = self._clock.elapsed()
                for uid, what, sent_at, text in self.inbox.take(
                    {uid for uid, at in self._expected.items() if at > now}
                ):
                    self._append(uid, what, array("q", sent_at), text)
                if keeps:
                    self.store.keep(None if here is None else here | {self._node_uid})
                    self._forget_all_but(here)
                    self._mark_dropped()
            except OSError as problem:
                problems.add(str(problem))
            problems |= {self._try_read(workload) for workload in workloads} - {""}
        self._note("; ".join(sorted(problems)))

    def _drain(self, workload: PrintingWorkload) -> None:
        with self._reading:
            if not self._is_open:
                return
            for _ in range(MOST_PIECES):
                before = self.store.cursor(workload.uid)
                if problem := self._try_read(workload):
                    log.info("%s: the end of its log can't be read: %s", workload.what, problem)
                    return
                if self.store.cursor(workload.uid) == before:
                    return

    def _try_read(self, workload: PrintingWorkload) -> str:
        """Try to read a workload's lines. Returns what prevented it, in words."""
        try:
            self._read(workload)
            return ""
        except WeftError:  # its guest has never been here, or has just gone
            return ""
        except Exception as problem:  # a defect of one driver must keep no other workload from it, nor end the agent
            if not isinstance(problem, OSError):
                log.debug("log of %s", workload.what, exc_info=True)
            self._failed[workload.uid] = self._clock.elapsed()
            return f"{workload.what}: {problem}"

    def _read(self, workload: PrintingWorkload) -> None:
        """Raises WeftError, OSError."""
        uid, now = workload.uid, self._clock.now()
        if (came_to := self._marks.get(uid)) is not None:
            self._go_on_from(came_to, workload)
        before = self.store.cursor(uid) or Cursor()
        piece = read_source(workload.driver, workload.guest_id, before.position, now)
        if piece.missed:
            mark = f"[weft: {piece.missed} are missing here: they were gone before they could be read]\n".encode()
            self._append(uid, workload.what, array("q", [int(now * 1e6)]), mark)
        if piece.chunks or piece.position != before.position:
            self._put(workload, assemble(before, piece.chunks, piece.position))
            self._begun.pop(uid, None)
            self._rests.pop(uid, None)
            return
        seconds = min(MOST_REST_SECONDS, 2 * self._rests.get(uid, (0.0, STEP_SECONDS / 2))[1])
        self._rests[uid] = (self._clock.elapsed() + seconds, seconds)
        if before.rests:
            since = self._begun.setdefault(uid, self._clock.elapsed())
            if self._clock.elapsed() - since >= REST_SECONDS:
                self._put(workload, end_rests(before, int(now * 1e6)))
                del self._begun[uid]

    def _go_on_from(self, mark: LogMark, workload: PrintingWorkload) -> None:
        """Its lines of another node haven't come, and those in the part of its console that has come stand for them: they get the
        numbers that they have there, or who follows the log would get them once more. Raises OSError."""
        if self.store.cursor(workload.uid) is None:
            count = count_lines(workload.driver, workload.guest_id, mark.position)
            if count is not None and mark.next > count:
                self.store.set_next(workload.uid, mark.next - count, Cursor())
        self._marks.pop(workload.uid, None)

    def _put(self, workload: PrintingWorkload, lines: Assembled) -> None:
        self._append(workload.uid, workload.what, lines.times, lines.text, lines.cursor)

    def _append(self, uid: str, what: str, times: array[int], text: bytes, cursor: Cursor | None = None) -> None:
        """Raises OSError."""
        self.store.append(uid, times, text, cursor, what)
        if self.syslog is not None and times:
            self.syslog.send(what, Lines(uid, 0, times, text))

    def _mark_dropped(self) -> None:
        """Say in their logs what the store had no place for. Raises OSError."""
        names, now = self.store.sources(), int(self._clock.now() * 1e6)
        for uid, count in self.store.take_dropped().items():
            if what := names.get(uid):
                words = (
                    f"the oldest {count} lines of this log were dropped: it has more than its share of the node's store"
                )
                self.store.append(uid, array("q", [now]), f"[weft: {words}]\n".encode())
                log.warning("logs: the oldest %d lines of %s were dropped: it has more than its share", count, what)

    def _open(self) -> None:
        if not self._is_open:
            self.store.open()
            self._is_open = True
            if self.exporter is not None:
                self.exporter.begin()

    def _forget_all_but(self, here: set[str] | None) -> None:
        if here is not None:
            for known in (self._expected, self._marks, self._begun, self._failed, self._rests):
                for uid in [uid for uid in known if uid not in here]:
                    del known[uid]

    def _note(self, problem: str) -> None:
        """Log what keeps lines from being gathered, when it begins and when it ends."""
        if problem and not self._problem:
            log.warning("logs are not gathered: %s", problem)
        elif self._problem and not problem and not self._failed:
            log.info("logs are gathered again")
        else:
            return
        self._problem = problem
