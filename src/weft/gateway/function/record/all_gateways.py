"""The records of a function at all gateways of the fabric, each of which has those of what it ran: counts are added up, lines
merged by time. Servers whose part is missing are named. What other gateways answer is bounded, and only read."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.record.metrics import FunctionMetrics, MetricsPart, add_counts, make_metrics
from weft.gateway.function.record.output_log import LONGEST_LINE_BYTES, STAMP_BYTES, Follower, PrintedLog, stamp
from weft.gateway.function.record.recorder import InvocationRecorder

METRICS, LINES = "/v1/function-records:metrics", "/v1/function-records:lines"
LOOK_SECONDS = 1.0  # from one look for new lines to the next
_LATE_SECONDS = 5.0  # that a line may come after a younger one
_MOST_LINE_BYTES = LONGEST_LINE_BYTES + 1024
T = TypeVar("T")


class LinesQuery(msgspec.Struct):
    """The lines that are wanted: since the stamp ``since``, "": ever; of these the newest ``tail``, -1: all."""

    uid: str
    since: str = ""
    tail: int = -1


class AsksGateways(Protocol):
    async def ask_all(self, path: str, body: Callable[[str], Any], type: type[T]) -> tuple[dict[str, T], list[str]]:
        """The answers of the other gateways, by the names of their servers, and the names of servers without one. ``body`` gives
        what a server is asked."""
        ...


class Lines(NamedTuple):
    """``lines`` of all gateways, oldest first; ``found``: those of other servers, as far as they were asked for."""

    lines: list[bytes]
    found: dict[str, list[bytes]]
    away: list[str]


class FunctionRecords:
    """``others``: None where no other server can come."""

    def __init__(self, record: InvocationRecorder, log: PrintedLog, others: AsksGateways | None, clock: Clock) -> None:
        self._record, self._log, self._others, self._clock = record, log, others, clock

    def read_own_metrics(self, uid: str) -> MetricsPart:
        return self._record.read_part(uid)

    async def read_own_lines(self, asked: LinesQuery) -> list[bytes]:
        return await asyncio.to_thread(self._log.read, asked.uid, tail=asked.tail, since=asked.since)

    async def read_metrics(self, uid: str, project: str, name: str) -> FunctionMetrics:
        """Those of all gateways; instances as this one's nodes report them, who report them to all."""
        own = self._record.read_part(uid)
        parts, away = await self._ask(METRICS, lambda _: uid, MetricsPart)
        counts, concurrent = own.counts, own.concurrent
        instances = {there.node: there for there in own.instances}
        for part in parts.values():
            counts, concurrent = add_counts(counts, part.counts), concurrent + part.concurrent
            instances = {there.node: there for there in part.instances} | instances
        nodes = [instances[node] for node in sorted(instances)]
        return make_metrics(counts, name, project, concurrent, nodes, away)

    async def read_lines(self, uid: str, *, tail: int = -1, since: str = "") -> Lines:
        """The last ``tail`` lines (-1: all) of those since the stamp ``since``."""
        asked = LinesQuery(uid, since, tail if tail < 0 else max(tail, 1))  # where a follower begins
        own = await self.read_own_lines(LinesQuery(uid, since, tail))
        parts, away = await self._ask(LINES, lambda _: asked, list[bytes])
        found = {server: _check(lines) for server, lines in parts.items()}
        lines = list(heapq.merge(own, *found.values(), key=_read_stamp)) if any(found.values()) else own
        return Lines(lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :], found, away)

    async def gather(self, uid: str, follower: Follower, begun: Lines) -> None:
        """Put into ``follower`` what other gateways have since ``begun``, until cancelled."""
        known, start = dict(begun.found), stamp(self._clock.now() - _LATE_SECONDS)
        while self._others is not None:
            await self._clock.sleep(LOOK_SECONDS)
            parts, _ = await self._ask(
                LINES, lambda server: LinesQuery(uid, _find_since(known.get(server, ()), start)), list[bytes]
            )
            for server, lines in parts.items():
                seen, known[server] = Counter(known.get(server, ())), _check(lines) or known.get(server, [])
                for line in _check(lines):
                    seen[line] -= 1
                    if seen[line] < 0:
                        follower.put(line)

    async def _ask(self, path: str, body: Callable[[str], Any], type: type[T]) -> tuple[dict[str, T], list[str]]:
        return ({}, []) if self._others is None else await self._others.ask_all(path, body, type)


def _check(lines: Sequence[bytes]) -> list[bytes]:
    """Those that are lines of a log."""
    return [line for line in lines if STAMP_BYTES < len(line) < _MOST_LINE_BYTES and line.find(b"\n") == len(line) - 1]


def _read_stamp(line: bytes) -> bytes:
    return line[:STAMP_BYTES]


def _find_since(known: Sequence[bytes], start: str) -> str:
    """The stamp from which on a server may have new lines: a little before its last, and nothing before its first."""
    if not known:
        return start
    try:
        last = datetime.fromisoformat(max(map(_read_stamp, known)).decode()).timestamp()
    except ValueError:
        return start
    return max(stamp(last - _LATE_SECONDS), min(map(_read_stamp, known)).decode())
