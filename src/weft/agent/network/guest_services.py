"""Services that the gateway of a network offers to the network's guests on this node, where the network opens it: syslog over UDP
and TCP (port 514), and spans by OTLP over HTTP (port 4318).

Whose it is follows from the address that it comes from, which the network driver lets only one guest have; woken by guests, and by
the clock to follow the networks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from weft.agent.logs.inbox import Inbox
from weft.agent.logs.syslog_listener import SyslogListener
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.agent.trace.allowance import Allowance
from weft.agent.trace.guest_spans import MOST_BYTES as MOST_REQUEST_BYTES
from weft.agent.trace.guest_spans import decode_body, read_request
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CanListen, Segment
from weft.contracts.trace.span import Tracer
from weft.kinds.network import TRACES
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer
from weft.serving.request import BodyLost, Request
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds

log = logging.getLogger("weft.agent")
SYSLOG_PORT, OTLP_PORT = 514, 4318
FOLLOW_SECONDS = 1.0
LEAST_BURST_SPANS = 600.0  # of one guest, however many there are: more than any request
SPANS_PER_SECOND, BURST_SPANS = 100.0, 2_000.0  # of all guests: fewer than the server takes of a node
SPAN_BYTES = 2_048  # of a request, decompressed, count as a span at least: reading them costs as much
_BOUNDS = Bounds(
    most_connections=64,
    most_unwanted_bytes=65_536,
    most_body_bytes=MOST_REQUEST_BYTES,
    most_held_bytes=8 << 20,
    parts=8,
)


Lists = Callable[[], Mapping[str, tuple[Segment, frozenset[str]]]]


class _Open(NamedTuple):
    """The service that is offered in a segment."""

    segment: str
    service: SyslogListener | HttpServer


class GuestServices:
    """Follows ``list_services``, by network uid; lines go to ``inbox``, spans to ``tracer``."""

    def __init__(
        self, driver: object, table: AllocationTable, inbox: Inbox, tracer: Tracer | None, clock: Clock
    ) -> None:
        self._driver, self._table, self._inbox, self._tracer, self._clock = driver, table, inbox, tracer, clock
        self._open: dict[tuple[str, str], _Open] = {}
        self._failed: set[tuple[str, str]] = set()
        self._guests: dict[tuple[str, str], LocalAllocation] = {}  # by network uid and address
        self._allowance = Allowance(SPANS_PER_SECOND, BURST_SPANS, LEAST_BURST_SPANS, clock)
        self._reading = asyncio.Lock()  # one request at once: others wait in their connections, whose bytes are bounded

    async def keep(self, list_services: Lists) -> None:
        """Follow for ever."""
        if not isinstance(self._driver, CanListen):
            return
        try:
            while True:
                await self.follow(list_services())
                await self._clock.sleep(FOLLOW_SECONDS)
        finally:
            for one in self._open.values():
                await one.service.close()

    async def follow(self, wanted: Mapping[str, tuple[Segment, frozenset[str]]]) -> None:
        """Listen in these networks for these services, and for no others."""
        self._guests = {
            (nic.network_uid, nic.address): state.local
            for state in self._table
            for nic in state.local.spec.nics
            if state.local.spec.role != "target"
        } if wanted else {}  # fmt: skip
        asked = {(uid, what): segment for uid, (segment, taken) in wanted.items() for what in taken}
        for key in [key for key, one in self._open.items() if key not in asked or one.segment != asked[key].id]:
            await self._open.pop(key).service.close()
        self._failed &= asked.keys()
        for key, segment in asked.items():
            if key not in self._open:
                try:
                    self._open[key] = _Open(segment.id, await self._begin(*key, segment))
                    self._failed.discard(key)
                except OSError as problem:
                    if key not in self._failed:
                        log.warning("network %s: %s can't be offered: %s; tried again", segment.name, key[1], problem)
                    self._failed.add(key)

    async def _begin(self, uid: str, what: str, segment: Segment) -> SyslogListener | HttpServer:
        """Raises OSError."""
        assert isinstance(self._driver, CanListen)
        if what == TRACES:
            sock = await self._driver.gateways.listen(segment.id, segment.gateway, OTLP_PORT, "tcp")
            server = HttpServer(
                partial(self._take_spans, uid),
                [sock],
                None,
                self._clock,
                _BOUNDS,
                lambda status, why: _refuse(status, why),
            )
            server.start()
            return server
        datagrams = await self._driver.gateways.listen(segment.id, segment.gateway, SYSLOG_PORT, "udp")
        try:
            stream = await self._driver.gateways.listen(segment.id, segment.gateway, SYSLOG_PORT, "tcp")
        except OSError:
            datagrams.close()
            raise
        listener = SyslogListener(datagrams, stream, partial(self._find, uid), self._inbox, self._clock)
        await listener.begin()
        return listener

    def _find(self, uid: str, address: str) -> LocalAllocation | None:
        return self._guests.get((uid, address))

    async def _take_spans(self, uid: str, request: Request) -> Answer:
        local = self._find(uid, request.address)
        if local is None or self._tracer is None:
            return _refuse(403, "only workloads of this network send spans here")
        if request.method != "POST" or request.path != "/v1/traces":
            return _refuse(404, "here is POST /v1/traces, as OTLP over HTTP has it")
        body = bytearray()
        try:
            while piece := await request.read():
                body += piece
                if len(body) > MOST_REQUEST_BYTES:
                    return _refuse(413, f"a request has at most {MOST_REQUEST_BYTES} bytes")
        except BodyLost:
            return _refuse(400, "the body is incomplete")
        workload, media_type = local.spec.workload, request.header(b"content-type")
        about = f"{workload.kind}/{workload.project or '-'}/{workload.name}"
        encoding = request.header(b"content-encoding")
        try:
            async with self._reading:
                data = await asyncio.to_thread(decode_body, bytes(body), encoding)
                size = -(-len(data) // SPAN_BYTES)
                if not self._allowance.take(workload.uid, size):
                    return _TOO_MANY
                spans = await asyncio.to_thread(read_request, data, media_type, about)
        except InvalidInput as problem:
            return _refuse(400, problem.message)
        if not self._allowance.take(workload.uid, len(spans) - size):
            return _TOO_MANY
        await asyncio.to_thread(self._tracer.put, *spans)
        if media_type.startswith("application/json"):
            return Answer(200, b"{}", (("content-type", "application/json"),))
        return Answer(200, b"", (("content-type", "application/x-protobuf"),))


_TOO_MANY = Answer(429, b"", (("retry-after", "10"),))


def _refuse(status: int, text: str) -> Answer:
    return Answer(status, f"{text}\n".encode(), (("content-type", "text/plain; charset=utf-8"),))
