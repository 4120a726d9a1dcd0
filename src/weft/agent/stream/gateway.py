"""Keeps a connection to a gateway, so that it can reach this node: agents dial out, no one dials in.

Over it the gateway names the streams to open, and each is dialled from here. Lost connections are dialled again with a growing
pause; guests don't notice. Woken by the gateway's frames.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

import msgspec

from weft.agent.server.line import ServerLine
from weft.agent.stream.connection import Stream
from weft.agent.stream.wait import within
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.protocol.claims import Claims
from weft.protocol.frames import REPLACED, Frame, FrameType, encode_error, encode_frame, encode_hello, receive_frame
from weft.protocol.tls_streams import open_stream

log = logging.getLogger("weft.agent")
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 45.0  # the gateway pings every 15
FIRST_PAUSE_SECONDS = 0.2
STEADY_SECONDS = 5.0  # a connection that lasted for so long begins with short pauses again
REPLACED_SECONDS = (
    300.0  # until the next look at a gateway that this node has another connection to, by another address
)

Serve = Callable[[Stream, Claims], Awaitable[None]]


class Gateway(msgspec.Struct, frozen=True):
    host: str
    port: int
    server_name: str  # in its certificate

    @property
    def place(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class GatewayConnection:
    """This node's connection to one gateway; ``serve`` serves a stream to its end. ``serves_functions``: streams may carry
    invocations. ``line`` says how long to wait before the next try."""

    def __init__(
        self,
        gateway: Gateway,
        tls: ssl.SSLContext,
        node_uid: str,
        serve: Serve,
        clock: Clock,
        *,
        serves_functions: bool = False,
        line: ServerLine | None = None,
    ) -> None:
        self._serves_functions, self._line = serves_functions, line or ServerLine(clock)
        self._gateway, self._tls, self._node_uid = gateway, tls, node_uid
        self._serve, self._clock = serve, clock
        self._streams: set[asyncio.Task[None]] = set()
        self._troubled = ""

    async def keep(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Stay connected while that works, and try again for as long as ``is_wanted``; ends its streams when cancelled."""
        tries = 0
        try:
            while is_wanted():
                began = self._clock.elapsed()
                try:
                    await self._follow()
                except (OSError, WeftError) as problem:
                    if str(problem) != self._troubled:
                        self._troubled = str(problem)
                        log.warning("gateway %s: %s", self._gateway.place, problem)
                    if isinstance(problem, WeftError) and problem.token == REPLACED:
                        await self._clock.sleep(REPLACED_SECONDS)
                tries = 1 if self._clock.elapsed() - began > STEADY_SECONDS else tries + 1
                await self._clock.sleep(self._line.choose_pause(tries, FIRST_PAUSE_SECONDS))
        finally:
            for task in self._streams:
                task.cancel()
            await asyncio.gather(*self._streams, return_exceptions=True)

    async def _follow(self) -> None:
        reader, writer = await self._dial()
        try:
            writer.write(
                encode_hello(
                    role="agent",
                    node_uid=self._node_uid,
                    keeps_sessions=True,
                    counts_printed=True,
                    serves_functions=self._serves_functions,
                )
            )
            while True:
                frame = await within(self._clock, receive_frame(reader), SILENCE_SECONDS, "the gateway's next ping")
                if frame is None:
                    raise Unavailable("the gateway closed the connection")
                if self._troubled:
                    log.info("gateway %s: connected again", self._gateway.place)
                    self._troubled = ""
                self._obey(frame, writer)
                await writer.drain()
        finally:
            writer.close()

    def _obey(self, frame: Frame, writer: asyncio.StreamWriter) -> None:
        if frame.type == FrameType.PING:
            writer.write(encode_frame(FrameType.PING))
        elif frame.type == FrameType.ERROR:
            raise frame.error()
        elif frame.type == FrameType.HELLO:
            task = asyncio.ensure_future(self._open(frame))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)

    async def _open(self, frame: Frame) -> None:
        order = frame.json()
        try:
            reader, writer = await self._dial()
        except (OSError, WeftError) as problem:
            log.warning("stream: %s", problem)
            return
        stream = Stream(reader, writer, self._gateway.place)
        try:
            await stream.send(encode_hello(role="stream", stream=order.get("open")))
            try:
                claims = msgspec.convert(order.get("claims"), Claims)
            except msgspec.ValidationError as problem:
                await stream.send(encode_error(InvalidInput(f"the ticket's claims are not valid: {problem}")))
            else:
                await self._serve(stream, claims)
        except OSError as problem:
            log.debug("stream: %s", problem)
        finally:
            await stream.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = self._gateway
        return await within(
            self._clock,
            open_stream(place.host, place.port, self._tls, place.server_name),
            CONNECT_SECONDS,
            f"connecting to the gateway at {place.place}",
        )
