"""Reports this node's changes to the server: the first at once, then at most 5 batches a second, and a heartbeat after a long
silence. Keeps what wasn't acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from weft.agent.server.client import Server
from weft.agent.server.contact import Contact
from weft.agent.server.outbox import Outbox
from weft.contracts.clock import Clock
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocationReport
from weft.kinds.node import NodeReport
from weft.objects.errors import WeftError
from weft.objects.identity import Ref, new_uid
from weft.protocol.heartbeat import Digest
from weft.protocol.report import MOST_EVENTS, EventType, ReportAnswer, ReportBody

log = logging.getLogger("weft.agent")
TICK_SECONDS = 0.2
HEARTBEAT_SECONDS = 8.0
SYNC_SECONDS = 1.0  # an event is safe from a power cut after so long
MOST_ALLOCATIONS = 500  # in one batch: far below what the server takes


class ReportQuestion(msgspec.Struct, frozen=True):
    """The other fields of every batch: see ``ReportBody``."""

    ranges_version: str = ""
    idle_networks: list[str] = []
    networks: list[str] = []
    peers_version: str = ""
    digest: Digest | None = None
    heard: str = ""


class ReportSource(Protocol):
    """The reported node."""

    async def save_before_report(self) -> None:
        """Save what must survive a crash once the server has read it."""

    def make_node_report(self) -> NodeReport:
        """The node's own facts as they are now."""

    def make_question(self) -> ReportQuestion: ...

    @property
    def longest_silence_seconds(self) -> float:
        """How soon to report again."""

    def take_answer(self, answer: ReportAnswer) -> None: ...

    def note_contact(self) -> None:
        """The server hears this node again, after a silence."""


class Reporter:
    """The pending reports of node ``node``. ``news`` wakes it. ``read_time``: see ``Contact``; None: that of ``clock``."""

    def __init__(
        self,
        node: str,
        server: Server,
        clock: Clock,
        news: asyncio.Event,
        outbox: Outbox | None = None,
        read_time: Callable[[], float] | None = None,
    ) -> None:
        self.outbox = outbox if outbox is not None else Outbox(None, clock)
        self._node, self._server, self._clock, self._woken = node, server, clock, news
        self._current: dict[str, AllocationReport] = {}
        self._unreported: set[str] = set()
        self._removed_volumes: list[str] = []
        self._reported: NodeReport | None = None
        self._process, self._number = new_uid(), 0  # of this agent, and of its node's facts that it reports
        self.answered_at = -math.inf  # clock's elapsed seconds
        self.contact = Contact(read_time or clock.elapsed)
        self._thread = ThreadPoolExecutor(1, "weft-report")
        self._troubled = ""
        self._unsynced, self._syncing = asyncio.Event(), asyncio.Lock()
        self._awaited = list[asyncio.Future[None]]()  # who waits for the next report to arrive

    def put(self, name: str, report: AllocationReport) -> None:
        """Report allocation ``name`` as ``report``."""
        if self._current.get(name) != report:
            self._current[name] = report
            self._unreported.add(name)
            self._woken.set()

    def compare(self, name: str, seen: AllocationReport) -> None:
        """Report allocation ``name`` again if the server has ``seen`` something else: it may have forgotten."""
        if name in self._current and self._current[name] != seen:
            self._unreported.add(name)
            self._woken.set()

    def drop(self, name: str) -> None:
        """The allocation is gone."""
        self._current.pop(name, None)
        self._unreported.discard(name)

    def put_event(self, object: Ref, type_: EventType, reason: str, message: str) -> None:
        """Write an event of ``object`` to the log and the journal."""
        level = logging.WARNING if type_ == "Warning" else logging.INFO
        log.log(level, "%s/%s/%s: %s: %s", object.kind, object.project or "-", object.name, reason, message)
        self.outbox.put(type_, reason, message, object)
        self._unsynced.set()
        self._woken.set()

    def put_removed_volume(self, uid: str) -> None:
        self._removed_volumes.append(uid)
        self._woken.set()

    def wake(self) -> None:
        """The node's own facts may have changed."""
        self._woken.set()

    async def deliver(self) -> None:
        """Return once the server has the node's facts as they are now, or newer."""
        arrived = asyncio.get_running_loop().create_future()
        self._awaited.append(arrived)
        self._woken.set()
        await arrived

    def repeat(self) -> None:
        """Report everything again: the server may have forgotten."""
        self._unreported = set(self._current)
        self._reported = None
        self._woken.set()

    async def run(self, source: ReportSource) -> None:
        """Report for ever."""
        syncing = asyncio.ensure_future(self._keep_synced())
        try:
            await self._report(source)
        finally:
            syncing.cancel()

    async def _keep_synced(self) -> None:
        """Make events safe from a power cut soon, also while no server answers and the tries are rare."""
        while True:
            await self._unsynced.wait()
            await self._clock.sleep(SYNC_SECONDS)  # the events of a moment together
            self._unsynced.clear()
            await self._sync()

    async def _sync(self) -> None:
        async with self._syncing:  # nobody goes on, to a report, before a sync that has begun is done
            if self.outbox.is_due:
                await asyncio.to_thread(self.outbox.sync)

    async def _report(self, source: ReportSource) -> None:
        tries = 0
        while True:
            await wait_for_event(self._clock, self._woken, source.longest_silence_seconds)
            self._woken.clear()
            await source.save_before_report()
            await self._sync()
            sent_at = self.contact.note_sending()
            awaited, self._awaited = self._awaited, []
            token, body = self.contact.token, self._make_body(source)
            try:
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._server.report, self._node, body
                )
            except WeftError as problem:
                self._keep(body)
                self._awaited += awaited
                if problem.message != self._troubled:
                    self._troubled = problem.message
                    log.warning("report: %s (%s)", problem.message, problem.hint or "tried again")
                tries += 1
                await self._clock.sleep(self._server.line.choose_pause(tries))
                continue
            if self._troubled:
                log.info("report: the server answers again")
            self._troubled, tries, self.answered_at = "", 0, self._clock.elapsed()
            self.outbox.note_contact()
            self._acknowledge(body, answer)
            if answer.version in ("", body.version):
                for arrived in awaited:
                    if not arrived.done():
                        arrived.set_result(None)
            else:
                self._awaited += awaited
            is_back = answer.version in ("", body.version) and self.contact.note_answer(token, sent_at)
            source.take_answer(answer)
            if is_back:
                source.note_contact()
            await self._clock.sleep(TICK_SECONDS)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.outbox.close()

    def _make_body(self, source: ReportSource) -> ReportBody:
        names = sorted(self._unreported)[:MOST_ALLOCATIONS]
        events, removed = self.outbox.read(MOST_EVENTS), list(self._removed_volumes)
        self._unreported.difference_update(names)
        self._removed_volumes.clear()
        if self._unreported:
            self._woken.set()
        node, question = source.make_node_report(), source.make_question()
        self._number += node != self._reported
        return ReportBody(
            node=node if node != self._reported else None,
            version=f"{self._process}.{self._number}",
            allocations={name: self._current[name] for name in names},
            events=events,
            outbox=self.outbox.id if events else "",
            removed_volumes=removed,
            ranges_version=question.ranges_version,
            idle_networks=question.idle_networks,
            networks=question.networks,
            peers_version=question.peers_version,
            digest=question.digest,
            heard=question.heard,
        )

    def _keep(self, body: ReportBody) -> None:
        """``body`` didn't arrive: report it again, unless something newer replaces it."""
        self._unreported.update(name for name in body.allocations if name in self._current)
        self._removed_volumes[:0] = body.removed_volumes
        self._woken.set()

    def _acknowledge(self, body: ReportBody, answer: ReportAnswer) -> None:
        if body.node is not None:
            self._reported = body.node
        if answer.version not in ("", body.version):
            self._reported = None  # an older report came late and replaced this one
            self._woken.set()
        if body.events:
            newest = body.events[-1].n
            through = answer.through if answer.through is not None else newest  # an older server keeps what it gets
            self.outbox.acknowledge(through)
            if through >= newest and len(self.outbox):
                self._woken.set()  # more wait
        for name, why in answer.refused.items():
            log.warning("the server refused the report on allocation %s: %s", name, why)
