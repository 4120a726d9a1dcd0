"""A guest's output, and its console, for one client: carried from the guest's node, and after a migration from the next one. Bytes
are counted, so that all arrive, and once.

Woken by frames. Typed input goes to the guest's present node; input that is on its way during a migration is lost, as on any serial
line.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.reconnect import FindPlace, Open, Reconnector, WorkloadLocation, read_place
from weft.gateway.stream.splice import END, FROM_CLIENT, Carried
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.protocol.frames import Frame, FrameType, encode_error, encode_frame

log = logging.getLogger("weft.gateway")
_FINAL = ("inUse", "illegalTransition", "unsupported")
_MOST_HELD_BYTES = 1 << 20  # of lines whose numbers the node hasn't announced yet


class _Left(msgspec.Struct):
    """The guest has left the node. ``place``: where it went, as the node reported."""

    place: WorkloadLocation | None = None


class OutputStream:
    """One stream of ``client``; the rest is as in Reconnector."""

    def __init__(
        self, client: StreamConnection, claims: dict[str, Any], open_stream: Open, find_place: FindPlace, clock: Clock
    ) -> None:
        self._client, self._claims = client, claims
        self._printed: int | None = None  # the position in the output; None: it hasn't begun
        # Then positions are numbers of lines, which the node announces as it sends them.
        self._in_lines = (claims.get("input") or {}).get("aggregate") is True
        # Lines wait for their number: what is lost with their node before would otherwise come once more.
        self._held: list[Frame] = []
        self._held_bytes = 0
        self._carried = Carried()
        self._pursuit = Reconnector(claims, self._ask, open_stream, find_place, clock)
        self._stream: StreamConnection | None = None  # None: typed input is dropped
        self._opened = asyncio.Event()

    async def carry(self, place: WorkloadLocation) -> Carried:
        """Carry to its end; the client always gets a last frame. Raises WeftError if no stream can be opened."""
        stream = await self._pursuit.open(place)
        listening = asyncio.ensure_future(self._listen())
        try:
            while (left := await self._serve(stream, listening)) is not None:
                stream.writer.close()
                taking_up = asyncio.ensure_future(self._take_up(left.place or place))
                await asyncio.wait((taking_up, listening), return_when=asyncio.FIRST_COMPLETED)
                if not taking_up.done():
                    taking_up.cancel()
                    listening.result()
                    break  # the client has gone
                before, (stream, place) = place, taking_up.result()
                await self._send_notice(before, place)
        except WeftError as problem:
            self._carried.result = problem.token
            await self._client.send(encode_error(problem))
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            stream.writer.close()
        return self._carried

    async def _take_up(self, place: WorkloadLocation) -> tuple[StreamConnection, WorkloadLocation]:
        what = "its console" if self._claims.get("verb") == "console" else "what it prints"
        return await self._pursuit.take_up(place, _FINAL, self._begin, what)

    async def _serve(self, stream: StreamConnection, listening: asyncio.Future[None]) -> _Left | None:
        """Carry until the stream's end (None), or until it is lost. Raises WeftError."""
        self._stream = stream
        self._opened.set()
        receiving = asyncio.ensure_future(self._receive(stream))
        try:
            await asyncio.wait((listening, receiving), return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            listening.result()
            self._carried.result = "client gone"
            return None
        finally:
            self._stream = None
            self._opened.clear()
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _listen(self) -> None:
        """Carry the client's input to the guest's present node, until the client has gone. Raises InvalidInput."""
        while (frame := await self._client.receive()) is not None:
            if frame.type not in FROM_CLIENT:
                raise InvalidInput(f"a client may not send frames of type {frame.type}")
            self._carried.bytes_in += len(frame.payload)
            await self._opened.wait()
            if self._stream is not None:
                await self._stream.send(encode_frame(frame.type, frame.payload))

    async def _receive(self, stream: StreamConnection) -> _Left | None:
        self._held, self._held_bytes = [], 0
        while (frame := await stream.receive()) is not None:
            if frame.type == FrameType.SESSION:
                self._begin(frame)
                await self._pass_held()
            elif frame.type == FrameType.DETACHED:
                self._begin(frame)
                await self._pass_held()
                return _Left(read_place(frame))
            elif frame.type in END:
                await self._pass_held()
                await self._client.send(encode_frame(frame.type, frame.payload))
                self._carried.result = "done" if frame.type == FrameType.EXIT else frame.error().token
                return None
            elif frame.type in (FrameType.DATA_OUT, FrameType.STDERR):
                if self._in_lines and self._printed is not None:
                    self._held.append(frame)
                    self._held_bytes += len(frame.payload)
                    if self._held_bytes <= _MOST_HELD_BYTES:
                        continue
                    await self._pass_held()
                else:
                    await self._pass(frame)
        if self._printed is None:
            raise Unavailable(
                "the connection to the workload's node was lost; the workload goes on", reason="streamLost"
            )
        return _Left()

    async def _pass_held(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        for frame in held:
            await self._pass(frame)

    async def _pass(self, frame: Frame) -> None:
        await self._client.send(encode_frame(frame.type, frame.payload))
        self._carried.bytes_out += len(frame.payload)
        if self._printed is not None and not self._in_lines:
            self._printed += len(frame.payload)

    async def _send_notice(self, before: WorkloadLocation, place: WorkloadLocation) -> None:
        """Show people at a console why it stopped for a moment."""
        if self._claims.get("verb") != "console":
            return
        name = (self._claims.get("workload") or {}).get("name") or "the workload"
        where = (
            f"{name} has migrated to node {place.node or place.node_uid}" if before.node_uid != place.node_uid else ""
        )
        notice = f"\r\n[{where or f'the connection to {name} was lost, and is back'}]\r\n"
        await self._client.send(encode_frame(FrameType.STDERR, notice.encode()))
        log.info("%s of %s goes on at node %s", self._claims.get("verb"), name, place.node_uid)

    def _begin(self, frame: Frame) -> None:
        printed = frame.json().get("printed")
        if printed is None and frame.type == FrameType.DETACHED:
            return  # its log is gone: what was counted here holds
        if not isinstance(printed, int):
            raise InvalidInput("the node doesn't report how much the workload has printed")
        self._printed = printed

    def _ask(self) -> dict[str, Any]:
        return {"printed": -1 if self._printed is None else self._printed}
