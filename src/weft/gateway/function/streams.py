"""The verbs of functions that need a stream with a ticket: invoke, logs, metrics. Woken by clients."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.invocation.call import AcceptsEvents, Call, InvocationOutcome, read_client_context
from weft.gateway.function.record.aggregated_log import AggregatedLog
from weft.gateway.function.record.all_gateways import FunctionRecords
from weft.gateway.function.record.output_log import stamp
from weft.gateway.function.service import FunctionService
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.splice import Carried
from weft.kinds.function import FunctionLogsInput, InvokeInput
from weft.objects.errors import InvalidInput, NotFound, TooLarge, WeftError
from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_MESSAGES, DeviceMessage
from weft.protocol.frames import FrameType, encode_data, encode_error, encode_exit, encode_frame, encode_json
from weft.protocol.invocations import MAX_PAYLOAD_BYTES

T = TypeVar("T", bound=msgspec.Struct)
Choose = Callable[[list[bytes]], bytes]
VERBS = ("invoke", "logs", "metrics")


class FunctionTarget(msgspec.Struct, frozen=True):
    """The function in a ticket's claims."""

    kind: str
    name: str
    uid: str
    project: str


class FunctionStreams:
    """Streams of ``service``; ``events`` takes asynchronous invocations, ``records`` has what this gateway and others recorded."""

    def __init__(self, service: FunctionService, events: AcceptsEvents, records: FunctionRecords, clock: Clock) -> None:
        self._service, self._events, self._records, self._clock = service, events, records, clock
        self._dispatcher, self._log = service.dispatcher, service.printed

    def on_agent(self, node_uid: str) -> None:
        self._service.on_agent(node_uid)

    def serves(self, claims: dict[str, Any]) -> bool:
        workload = claims.get("workload")
        return isinstance(workload, dict) and workload.get("kind") == "function" and claims.get("verb") in VERBS

    async def serve(self, client: StreamConnection, claims: dict[str, Any]) -> Carried:
        """Serve one stream to its end; the client always gets a last frame."""
        carried = Carried()
        verbs: dict[str, Callable[[StreamConnection, FunctionTarget, Any, Carried], Awaitable[None]]] = {
            "logs": partial(self._logs, str(claims.get("subject", ""))),
            "metrics": self._metrics,
        }
        try:
            target = _read(claims.get("workload"), FunctionTarget)
            if claims["verb"] == "invoke":
                traceparent, node = str(claims.get("traceparent", "")), str(claims.get("device_node", ""))
                await self._invoke(client, target, claims.get("input") or {}, carried, traceparent, node)
            else:
                await verbs[str(claims["verb"])](client, target, claims.get("input") or {}, carried)
            carried.result = "done"
        except WeftError as problem:
            carried.result = problem.token
            await client.send(encode_error(problem))
        return carried

    async def _invoke(
        self,
        client: StreamConnection,
        target: FunctionTarget,
        given: Any,
        carried: Carried,
        traceparent: str,
        device_node: str,
    ) -> None:
        """``device_node``: the uid of the node whose devices' messages come; "" for an invocation by a client."""
        asked = _read(given, InvokeInput)
        payload = await _receive_all(client)
        carried.bytes_in = len(payload)
        if device_node:
            await self._accept_messages(target, payload, device_node)
            await client.send(encode_exit(0))
            return
        call = Call(
            id=str(uuid.uuid4()),
            project=target.project,
            name=target.name,
            qualifier=asked.qualifier,
            payload=payload or b"{}",
            seconds=asked.timeout or None,
            tail=asked.tail,
            client_context=read_client_context(asked.client_context, "client_context") if asked.client_context else "",
            traceparent=traceparent,
        )
        if asked.later:
            catalogue = self._service.catalogue
            catalogue.published(catalogue.find(call.project, call.name), call.qualifier)
            await self._events.accept(call)
            await client.send(encode_json(FrameType.EXIT, {"code": 0, "requestId": call.id}))
            return
        outcome = await self._dispatcher.invoke(call)
        carried.bytes_out = len(outcome.payload)
        for frame in encode_data(FrameType.DATA_OUT, outcome.payload):
            await client.send(frame)
        await client.send(encode_json(FrameType.EXIT, _describe(outcome)))

    async def _accept_messages(self, target: FunctionTarget, payload: bytes, node: str) -> None:
        """Queue each; one that came before under its id stays as it is. Raises InvalidInput, and what the queue raises."""
        try:
            messages = msgspec.json.decode(payload, type=list[DeviceMessage])
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise InvalidInput(f"the messages can't be read: {problem}") from None
        if len(messages) > MOST_MESSAGES:
            raise InvalidInput(f"{len(messages)} messages", hint=f"send at most {MOST_MESSAGES} together")
        for one in messages:
            if len(msgspec.json.encode(one)) > MOST_MESSAGE_BYTES or one.project != target.project:
                raise InvalidInput(
                    f"message {one.id[:40]!r} is larger than {MOST_MESSAGE_BYTES} bytes, or of another project",
                    hint="send messages of devices of the function's project",
                )
        calls = [
            Call(
                id=_read_id(one.id),
                project=target.project,
                name=target.name,
                payload=msgspec.json.encode(one),
                node=node,
            )
            for one in messages
        ]
        await asyncio.gather(*(self._events.accept(call) for call in calls))  # one commit

    async def _logs(
        self, asker: str, client: StreamConnection, target: FunctionTarget, given: Any, carried: Carried
    ) -> None:
        asked = _read(given, FunctionLogsInput)
        if asked.aggregate:
            await self._aggregate(client, target, asked, carried, asker)
            return
        since = stamp(self._clock.now() - asked.since) if asked.since else ""
        await self._send_lines(client, target.uid, asked, since, carried, b"".join, b"".join)

    async def _aggregate(
        self, client: StreamConnection, target: FunctionTarget, asked: FunctionLogsInput, carried: Carried, asker: str
    ) -> None:
        """Raises InvalidInput."""
        log = await AggregatedLog.open(target.name, asked, self._clock, asker)
        whole = FunctionLogsInput(follow=asked.follow)  # it takes the last ones of those that it chooses
        try:
            await self._send_lines(client, target.uid, whole, log.since, carried, log.read, log.choose)
        finally:
            log.close()

    async def _send_lines(
        self,
        client: StreamConnection,
        uid: str,
        asked: FunctionLogsInput,
        since: str,
        carried: Carried,
        show: Choose,
        show_new: Choose,
    ) -> None:
        """Send the lines of all gateways, and to who follows new ones; ``since``: a stamp."""
        follower = self._log.follow(uid) if asked.follow else None
        gathering: asyncio.Future[None] | None = None
        try:
            begun = await self._records.read_lines(uid, tail=asked.tail, since=since)
            for server in begun.away:
                said = f"warning: server {server} is away: what lies only there is missing\n"
                await client.send(encode_frame(FrameType.STDERR, said.encode()))
            await _send(client, await asyncio.to_thread(show, begun.lines), carried)
            if follower is not None:
                gathering = asyncio.ensure_future(self._records.gather(uid, follower, begun))
                await self._follow(client, follower.lines, carried, show_new)
                return
        finally:
            if gathering is not None:
                gathering.cancel()
            if follower is not None:
                self._log.leave(uid, follower)
        await client.send(encode_exit(0))

    async def _follow(
        self, client: StreamConnection, lines: asyncio.Queue[bytes], carried: Carried, choose: Choose
    ) -> None:
        leaving = asyncio.ensure_future(_until_gone(client))
        try:
            while True:
                getting = asyncio.ensure_future(lines.get())
                await asyncio.wait((getting, leaving), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    return
                text = [getting.result()]
                while not lines.empty():
                    text.append(lines.get_nowait())
                await _send(client, await asyncio.to_thread(choose, text), carried)
        finally:
            leaving.cancel()

    async def _metrics(self, client: StreamConnection, target: FunctionTarget, given: Any, carried: Carried) -> None:
        metrics = await self._records.read_metrics(target.uid, target.project, target.name)
        await _send(client, msgspec.json.encode(metrics), carried)
        await client.send(encode_exit(0))


def _describe(outcome: InvocationOutcome) -> dict[str, Any]:
    document: dict[str, Any] = {
        "code": 1 if outcome.error else 0,
        "requestId": outcome.id,
        "version": outcome.version,
        "node": outcome.node,
        "start": outcome.start,
        "seconds": round(outcome.seconds, 6),
        "init_seconds": round(outcome.init_seconds, 6),
        "most_memory": outcome.most_memory,
    }
    if outcome.error:
        document |= {"error": outcome.error, "errorType": outcome.error_type}
    if outcome.tail:
        document["tail"] = base64.b64encode(outcome.tail).decode()
    return document


async def _receive_all(client: StreamConnection) -> bytes:
    """All data of the client until END_IN. Raises TooLarge, and NotFound if the client goes before that."""
    payload = bytearray()
    while (frame := await client.receive()) is not None:
        if frame.type == FrameType.END_IN:
            return bytes(payload)
        if frame.type == FrameType.DATA_IN:
            payload += frame.payload
            if len(payload) > MAX_PAYLOAD_BYTES:
                raise TooLarge(
                    f"the payload has more than {MAX_PAYLOAD_BYTES} bytes",
                    hint="put it where the function can fetch it",
                )
        elif frame.type != FrameType.PING:
            raise InvalidInput(f"a client may not send frames of type {frame.type}")
    raise NotFound("the client has gone")


async def _send(client: StreamConnection, data: bytes, carried: Carried) -> None:
    carried.bytes_out += len(data)
    for frame in encode_data(FrameType.DATA_OUT, data):
        await client.send(frame)


async def _until_gone(client: StreamConnection) -> None:
    while await client.receive() is not None:
        pass


def _read_id(given: str) -> str:
    """Raises InvalidInput unless it is a UUID, as those of all invocations are."""
    try:
        return str(uuid.UUID(given))
    except ValueError:
        raise InvalidInput(f"{given[:40]!r} is not an id", field="id", hint="draw a UUID for each message") from None


def _read(given: object, type_: type[T]) -> T:
    try:
        return msgspec.convert(given, type_)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"the ticket's claims can't be read: {problem}") from problem
