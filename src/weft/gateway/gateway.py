"""The gateway: agents keep a connection to it, clients bring a ticket, each stream gets a connection of its own.

Reads tickets (signed by the API server) and node certificates; stores nothing, knows no objects. Streams don't survive its
end; guests don't notice it. Woken by connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import SESSION_LOST
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.exec import ExecStream
from weft.gateway.stream.logs_and_console import OutputStream
from weft.gateway.stream.origins import Origins
from weft.gateway.stream.reconnect import FindPlace, WorkloadLocation
from weft.gateway.stream.rights import OpenStreams
from weft.gateway.stream.splice import Carried, splice
from weft.gateway.stream.websocket import receive_hello
from weft.kinds.parts.stream_verbs import STREAM_VERBS
from weft.objects.errors import (
    Forbidden,
    InUse,
    InvalidInput,
    NotAuthenticated,
    Unavailable,
    WeftError,
)
from weft.protocol.claims import Claims
from weft.protocol.frames import (
    REPLACED,
    ClientSession,
    Frame,
    FrameType,
    encode_error,
    encode_frame,
    encode_hello,
    encode_json,
)
from weft.protocol.tls_streams import listen_for_streams
from weft.trust.peer import Peer
from weft.trust.tickets import verify_ticket

log = logging.getLogger("weft.gateway")
audit = logging.getLogger("weft.audit")
HELLO_SECONDS = 10.0
DIAL_SECONDS = 10.0
PING_SECONDS = 15.0
SILENCE_SECONDS = 45.0
LINGER_SECONDS = 5.0
RECONNECT_SECONDS = 5.0
POLL_SECONDS = 0.05
MAX_CONNECTIONS = 4096
MAX_STREAMS = 1024
MAX_STREAMS_PER_NODE = 256

CheckNode = Callable[[str, Peer], Awaitable[object]]

T = TypeVar("T")


class Functions(Protocol):
    """Serves the streams of functions, in the gateway itself."""

    def on_agent(self, node_uid: str) -> None:
        """The agent of a node that runs functions has connected."""

    def serves(self, claims: dict[str, Any]) -> bool:
        """Whether the stream of a ticket with these claims is a function's."""

    async def serve(self, client: StreamConnection, claims: dict[str, Any]) -> Carried: ...


class _Pending(msgspec.Struct):
    """A stream that an agent is about to dial."""

    node_uid: str
    arrived: asyncio.Future[StreamConnection]


class Gateway:
    """One gateway.

    ``ticket_key`` is the key that the API server signs with. ``find_place`` asks the server for the location of the workload in a
    ticket's claims. ``origins`` are those of pages that may open web sockets. ``check_node`` raises for a node's certificate that
    doesn't count any more; call ``check_again`` when that may have changed. ``clients`` ends streams whose right has gone."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        ticket_key: bytes,
        clock: Clock,
        find_place: FindPlace | None = None,
        origins: Origins | None = None,
        check_node: CheckNode | None = None,
        functions: Functions | None = None,
        clients: OpenStreams | None = None,
    ) -> None:
        self._tls, self._ticket_key, self._clock = tls, ticket_key, clock
        self._origins = origins or Origins()
        self._check_node = check_node or _believe
        self._find_place = find_place or _find_nothing
        self._functions, self._clients = functions, clients or OpenStreams(clock)
        self._agents: dict[str, StreamConnection] = {}
        self._of_nodes: dict[str, set[StreamConnection]] = {}  # of agents, and of their streams, by node uid
        self._pending: dict[str, _Pending] = {}
        self._streams: dict[str, int] = {}  # under way, by node uid
        self._used: dict[bytes, float] = {}  # when a used ticket expires, by the digest of its claims
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[asyncio.Server] = []

    @property
    def ports(self) -> list[int]:
        """The ports it listens on."""
        return [sock.getsockname()[1] for server in self._servers for sock in server.sockets]

    @property
    def nodes(self) -> list[str]:
        """The uids of the nodes whose agents are connected."""
        return sorted(self._agents)

    async def listen(self, host: str, port: int) -> None:
        """Accept connections there. Raises OSError if it can't listen."""
        self._servers.append(await listen_for_streams(self._accept, host, port, self._tls, HELLO_SECONDS))

    async def close(self) -> None:
        """Close all connections."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = StreamConnection(reader, writer)
        try:
            if len(self._tasks) > MAX_CONNECTIONS:
                raise Unavailable("the gateway has too many connections", retry_after_seconds=5.0)
            greeted = await self._within(receive_hello(connection, self._origins), HELLO_SECONDS)
            if greeted is None:
                return
            connection, hello = greeted
            if hello.type != FrameType.HELLO:
                raise InvalidInput("the first frame must be a hello")
            await self._greet(connection, hello)
        except WeftError as problem:
            log.info("%s refused: %s", connection.address, problem.message)
            await connection.send(encode_error(problem))
            await self._within(connection.drain(), LINGER_SECONDS)
        except Exception:  # a defect ends one connection, not the gateway
            log.exception("connection from %s", connection.address)
        finally:
            writer.close()

    async def _greet(self, connection: StreamConnection, hello: Frame) -> None:
        given = hello.json()
        role = given.get("role")
        if role == "client":
            await self._serve_client(connection, str(given.get("ticket", "")), _read_session(given.get("session")))
        elif role == "agent":
            connection.keeps_sessions = given.get("keeps_sessions") is True
            connection.counts_printed = given.get("counts_printed") is True
            connection.serves_functions = given.get("serves_functions") is True
            async with self._of_node(connection) as uid:
                await self._serve_agent(connection, uid, given.get("node_uid"))
        elif role == "stream":
            async with self._of_node(connection) as uid:
                await self._take_stream(connection, uid, str(given.get("stream", "")))
        else:
            raise InvalidInput(f"no such role: {str(role)[:40]!r}", field="role")

    def check_again(self, node_uid: str) -> None:
        """The node's valid certificate may have changed: close connections that have shown another."""
        if self._of_nodes.get(node_uid):
            task = asyncio.ensure_future(self._check_again(node_uid))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _check_again(self, node_uid: str) -> None:
        for connection in list(self._of_nodes.get(node_uid, ())):
            try:
                if connection.peer is not None:
                    await self._check_node(node_uid, connection.peer)
            except (Forbidden, NotAuthenticated) as problem:
                log.info("node %s at %s is let go: %s", node_uid, connection.address, problem.message)
                connection.writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _of_node(self, connection: StreamConnection) -> AsyncIterator[str]:
        """The uid of the connection's node, while the connection lasts. Raises NotAuthenticated, Forbidden."""
        peer = connection.peer
        if peer is None or peer.node_uid is None:
            raise NotAuthenticated("an agent needs its node's certificate", hint="weft agent join")
        uid, agent = peer.node_uid, self._agents.get(peer.node_uid)
        self._of_nodes.setdefault(uid, set()).add(connection)
        try:
            if agent is None or agent.peer != peer:  # else it is a stream of an agent that was checked
                await self._check_node(uid, peer)
            yield uid
        finally:
            of_node = self._of_nodes[uid]
            of_node.discard(connection)
            if not of_node:
                del self._of_nodes[uid]

    async def _serve_agent(self, connection: StreamConnection, uid: str, node_uid: object) -> None:
        """Keep an agent's control connection; a newer one of the same node replaces it."""
        if node_uid != uid:
            raise Forbidden("the certificate belongs to another node")
        before = self._agents.get(uid)
        self._agents[uid] = connection
        if before is not None:
            before.writer.write(encode_error(InUse("a newer connection of this node took its place", reason=REPLACED)))
            before.writer.close()
        log.info("node %s is connected from %s", uid, connection.address)
        if connection.serves_functions and self._functions is not None:
            self._functions.on_agent(uid)
        pinging = asyncio.ensure_future(self._ping(connection))
        try:
            while await self._within(connection.receive(), SILENCE_SECONDS) is not None:
                pass
        finally:
            pinging.cancel()
            if self._agents.get(uid) is connection:
                del self._agents[uid]
                log.info("node %s is disconnected", uid)

    async def _ping(self, connection: StreamConnection) -> None:
        while await connection.send(encode_frame(FrameType.PING)):
            await self._clock.sleep(PING_SECONDS)

    async def _take_stream(self, connection: StreamConnection, uid: str, stream: str) -> None:
        """An agent has dialled a stream: give it to the waiting client, and stay until it ends."""
        pending = self._pending.get(stream)
        if pending is None or pending.arrived.done() or pending.node_uid != uid:
            raise Forbidden("no client waits for this stream")
        pending.arrived.set_result(connection)
        with contextlib.suppress(OSError):  # the agent may send on until it notices the end
            await connection.writer.wait_closed()

    async def _serve_client(self, client: StreamConnection, ticket: str, client_session: ClientSession | None) -> None:
        claims, whole = self._admit(ticket)
        with self._clients.hold(client, claims, whole.get("workload")):
            if claims.node_uid:
                await self._serve_workload(client, claims, whole, client_session)
            else:
                await self._serve_here(client, claims, whole)

    async def _serve_workload(
        self, client: StreamConnection, claims: Claims, whole: dict[str, Any], client_session: ClientSession | None
    ) -> None:
        agent = await self._find_agent(claims.node_uid)
        under_way = self._streams.get(claims.node_uid, 0)
        if under_way >= MAX_STREAMS_PER_NODE or sum(self._streams.values()) >= MAX_STREAMS:
            raise Unavailable("too many streams are under way", reason="tooManyStreams", retry_after_seconds=5.0)
        began = self._clock.elapsed()
        self._streams[claims.node_uid] = under_way + 1
        result, bytes_in, bytes_out = "failed", 0, 0
        try:
            carried = await self._carry(client, agent, claims, whole, client_session)
            result, bytes_in, bytes_out = carried.result, carried.bytes_in, carried.bytes_out
        except WeftError as problem:
            result = problem.token
            raise
        finally:
            self._streams[claims.node_uid] -= 1
            if not self._streams[claims.node_uid]:
                del self._streams[claims.node_uid]
            seconds = self._clock.elapsed() - began
            audit.info(
                "stream subject=%s from=%s verb=%s allocation=%s node=%s result=%s seconds=%.3f in=%d out=%d",
                *(claims.subject or "-", client.address, claims.verb, claims.allocation, claims.node_uid),
                *(result.replace(" ", "-"), seconds, bytes_in, bytes_out),
            )
        await self._within(client.drain(), LINGER_SECONDS)

    async def _serve_here(self, client: StreamConnection, claims: Claims, whole: dict[str, Any]) -> None:
        """A stream that the gateway itself serves. Raises InvalidInput."""
        if self._functions is None or not self._functions.serves(whole):
            raise InvalidInput(f"this gateway doesn't serve {claims.verb[:40]!r}", reason="notServed")
        began, carried = self._clock.elapsed(), Carried(result="failed")
        try:
            carried = await self._functions.serve(client, whole)
        finally:
            audit.info(
                "stream subject=%s from=%s verb=%s result=%s seconds=%.3f in=%d out=%d",
                *(claims.subject or "-", client.address, claims.verb, carried.result.replace(" ", "-")),
                *(self._clock.elapsed() - began, carried.bytes_in, carried.bytes_out),
            )
        await self._within(client.drain(), LINGER_SECONDS)

    async def dial(self, node_uid: str, claims: dict[str, Any]) -> StreamConnection:
        """Have the agent of a node dial a stream for ``claims``. Raises Unavailable if it isn't connected or doesn't dial."""
        return await self._open_at(
            self._agents.get(node_uid),
            WorkloadLocation(node_uid, "", ""),
            claims,
            able=lambda agent: agent.serves_functions,
        )

    async def _carry(
        self,
        client: StreamConnection,
        agent: StreamConnection,
        claims: Claims,
        whole: dict[str, Any],
        client_session: ClientSession | None,
    ) -> Carried:
        place = WorkloadLocation(claims.node_uid, claims.allocation, claims.guest_id)
        verb = STREAM_VERBS.get(claims.verb)
        follows = verb.follows if verb is not None else ""
        if follows == "session" and agent.keeps_sessions:
            carrier = ExecStream(client, whole, self._open_session, self._find_place, self._clock, client_session)
            return await carrier.carry(place)
        if follows == "output" and agent.counts_printed:
            printed = OutputStream(client, whole, self._open_printed, self._find_place, self._clock)
            return await printed.carry(place)
        if client_session is not None and client_session.run:  # begun anew the command would run twice
            raise Unavailable("the workload's node doesn't keep the command's session", reason=SESSION_LOST)
        stream = await self._open(agent, claims.node_uid, whole)
        if client_session is not None:
            await client.send(encode_json(FrameType.SESSION, {"key": "", "run": ""}))  # it isn't kept
        try:
            return await splice(client, stream)
        finally:
            stream.writer.close()

    async def _open_session(self, place: WorkloadLocation, claims: dict[str, Any]) -> StreamConnection:
        """Have the agent at ``place`` dial, if it is connected now. Raises Unavailable."""
        return await self._open_at(self._agents.get(place.node_uid), place, claims, able=lambda a: a.keeps_sessions)

    async def _open_printed(self, place: WorkloadLocation, claims: dict[str, Any]) -> StreamConnection:
        return await self._open_at(self._agents.get(place.node_uid), place, claims, able=lambda a: a.counts_printed)

    async def _open_at(
        self,
        agent: StreamConnection | None,
        place: WorkloadLocation,
        claims: dict[str, Any],
        able: Callable[[StreamConnection], bool],
    ) -> StreamConnection:
        if agent is None or not able(agent):
            raise Unavailable("the workload's node is not connected to the gateway", reason="agentServiceUnavailable")
        return await self._open(agent, place.node_uid, claims)

    async def _find_agent(self, node_uid: str) -> StreamConnection:
        """The node's control connection; waits a moment for an agent that was just restarted. Raises Unavailable."""
        deadline = self._clock.elapsed() + RECONNECT_SECONDS
        while (agent := self._agents.get(node_uid)) is None:
            if self._clock.elapsed() >= deadline:
                raise Unavailable(
                    "the workload's node is not connected to the gateway",
                    reason="agentServiceUnavailable",
                    hint="weft node list",
                )
            await self._clock.sleep(POLL_SECONDS)
        return agent

    def _admit(self, ticket: str) -> tuple[Claims, dict[str, Any]]:
        """The claims of a valid ticket that wasn't used before. Raises NotAuthenticated."""
        now = self._clock.now()
        whole = verify_ticket(self._ticket_key, ticket, now)
        try:
            claims = msgspec.convert(whole, Claims)
        except msgspec.ValidationError as problem:
            raise NotAuthenticated(f"the ticket is incomplete: {problem}") from problem
        while (oldest := next(iter(self._used), None)) is not None and self._used[oldest] < now:
            del self._used[oldest]
        mark = hashlib.sha256(msgspec.json.encode(whole, order="sorted")).digest()
        if mark in self._used:
            raise NotAuthenticated("the ticket was used before", hint="ask the API for a new one")
        self._used[mark] = claims.expires
        return claims, whole

    async def _open(self, agent: StreamConnection, node_uid: str, claims: dict[str, Any]) -> StreamConnection:
        """Have the node's agent dial a stream. Raises Unavailable if it doesn't."""
        stream = secrets.token_hex(16)
        arrived: asyncio.Future[StreamConnection] = asyncio.get_running_loop().create_future()
        self._pending[stream] = _Pending(node_uid, arrived)
        lost = Unavailable(
            "the workload's node did not answer the gateway", reason="agentServiceUnavailable", hint="try again"
        )
        try:
            if not await agent.send(encode_hello(open=stream, claims=claims)):
                raise lost
            found = await self._within(_wait(arrived), DIAL_SECONDS)
            if found is None:
                raise lost
            return found
        finally:
            del self._pending[stream]

    async def _within(self, work: Coroutine[Any, Any, T | None], seconds: float) -> T | None:
        """The result of ``work``, or None after ``seconds``."""
        working, limit = asyncio.ensure_future(work), asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait((working, limit), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            limit.cancel()


def _read_session(client_session: object) -> ClientSession | None:
    """Read what a client says of an exec session; None of one that only begins sessions. Raises InvalidInput."""
    try:
        return msgspec.convert(client_session, ClientSession | None)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"what the client says of its session can't be read: {problem}", field="session") from None


async def _believe(uid: str, peer: Peer) -> None:
    """The check of a gateway without a store: TLS has verified the certificate."""


async def _find_nothing(claims: dict[str, Any]) -> WorkloadLocation | None:
    return None


async def _wait(arrived: asyncio.Future[StreamConnection]) -> StreamConnection:
    return await arrived
