"""Tells the server what has changed here: one batch per tick, the first change at once, then at most 5 a second; and a
sign of life when it was silent for long. Keeps what wasn't acknowledged. Woken by whoever has something to tell.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from weft.agent.server.client import Server
from weft.contracts.clock import Clock
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocationReport
from weft.kinds.node import NodeReport
from weft.objects.errors import WeftError
from weft.objects.identity import new_uid
from weft.protocol.heartbeat import Digest
from weft.protocol.report import NodeEvent, ReportAnswer, ReportBody

log = logging.getLogger("weft.agent")
TICK_SECONDS = 0.2
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
HEARTBEAT_SECONDS = 8.0
MOST_EVENTS = 500
MOST_ALLOCATIONS = 500  # in one batch: far below what the server takes


class Question(msgspec.Struct, frozen=True):
    """What every batch asks, and says, besides: see ``ReportBody``."""

    ranges_version: str = ""
    idle_networks: list[str] = []
    peers_version: str = ""
    digest: Digest | None = None
    heard: str = ""


class Reporter:
    """What is to be told. ``prepare`` writes down what must not be forgotten once it was told; ``make_node_report`` gives the
    node's own facts as they are now, ``ask`` what to ask with them; ``longest_silence_seconds`` how soon to ask again;
    ``on_answer`` hears each answer."""

    def __init__(
        self,
        node: str,
        server: Server,
        clock: Clock,
        prepare: Callable[[], Awaitable[None]],
        make_node_report: Callable[[], NodeReport],
        longest_silence_seconds: Callable[[], float],
        ask: Callable[[], Question],
        on_answer: Callable[[ReportAnswer], None],
    ) -> None:
        self._node, self._server, self._clock = node, server, clock
        self._prepare, self._make_node_report, self._ask = prepare, make_node_report, ask
        self._on_answer = on_answer
        self._longest_silence_seconds = longest_silence_seconds
        self._current: dict[str, AllocationReport] = {}
        self._unsaid: set[str] = set()
        self._events: deque[NodeEvent] = deque(maxlen=MOST_EVENTS)
        self._removed_volumes: list[str] = []
        self._said: NodeReport | None = None
        self._life, self._number = new_uid(), 0  # of this agent, and of the facts that it has told
        self.answered_at = -math.inf  # clock's elapsed seconds
        self._woken = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "weft-report")
        self._troubled = ""

    def put(self, name: str, report: AllocationReport) -> None:
        """Allocation ``name`` is like this now."""
        if self._current.get(name) != report:
            self._current[name] = report
            self._unsaid.add(name)
            self._woken.set()

    def compare(self, name: str, seen: AllocationReport) -> None:
        """The server has ``seen`` of allocation ``name``: if that isn't how it is, it may have forgotten."""
        if name in self._current and self._current[name] != seen:
            self._unsaid.add(name)
            self._woken.set()

    def drop(self, name: str) -> None:
        """There is no such allocation any more."""
        self._current.pop(name, None)
        self._unsaid.discard(name)

    def put_event(self, event: NodeEvent) -> None:
        self._events.append(event)
        self._woken.set()

    def put_removed_volume(self, uid: str) -> None:
        self._removed_volumes.append(uid)
        self._woken.set()

    def wake(self) -> None:
        """The node's own facts may have changed."""
        self._woken.set()

    def repeat(self) -> None:
        """The server may have forgotten: tell it all again."""
        self._unsaid = set(self._current)
        self._said = None
        self._woken.set()

    async def tell(self) -> None:
        """Report for ever."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            await wait_for_event(self._clock, self._woken, self._longest_silence_seconds())
            self._woken.clear()
            await self._prepare()
            body = self._make_body()
            try:
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._server.report, self._node, body
                )
            except WeftError as problem:
                self._keep(body)
                if problem.message != self._troubled:
                    self._troubled = problem.message
                    log.warning("report: %s (%s)", problem.message, problem.hint or "tried again")
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                continue
            if self._troubled:
                log.info("report: the server answers again")
            self._troubled, pause, self.answered_at = "", FIRST_PAUSE_SECONDS, self._clock.elapsed()
            self._acknowledge(body, answer)
            await self._clock.sleep(TICK_SECONDS)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _make_body(self) -> ReportBody:
        names = sorted(self._unsaid)[:MOST_ALLOCATIONS]
        events, removed = list(self._events), list(self._removed_volumes)
        self._unsaid.difference_update(names)
        self._events.clear()
        self._removed_volumes.clear()
        if self._unsaid:
            self._woken.set()
        node, question = self._make_node_report(), self._ask()
        self._number += node != self._said
        return ReportBody(
            node=node if node != self._said else None,
            version=f"{self._life}.{self._number}",
            allocations={name: self._current[name] for name in names},
            events=events,
            removed_volumes=removed,
            ranges_version=question.ranges_version,
            idle_networks=question.idle_networks,
            peers_version=question.peers_version,
            digest=question.digest,
            heard=question.heard,
        )

    def _keep(self, body: ReportBody) -> None:
        """``body`` didn't arrive: say it again, unless there is something newer to say."""
        self._unsaid.update(name for name in body.allocations if name in self._current)
        self._events.extendleft(reversed(body.events[: MOST_EVENTS - len(self._events)]))
        self._removed_volumes[:0] = body.removed_volumes
        self._woken.set()

    def _acknowledge(self, body: ReportBody, answer: ReportAnswer) -> None:
        if body.node is not None:
            self._said = body.node
        if answer.version not in ("", body.version):
            self._said = None  # an older one came late, and is what the server has
            self._woken.set()
        for name, why in answer.refused.items():
            log.warning("report on allocation %s refused: %s", name, why)
        self._on_answer(answer)
