"""Exec sessions that outlive their connection to the guest's node: carried between one client and, one after the other, the
agents of the nodes where the guest is.

Woken by frames. The guest's former agent, or the server, reports where the guest is now.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import SESSION_LOST, SessionStanding
from weft.gateway.stream.connection import StreamConnection
from weft.gateway.stream.exec_replay import ExecReplay
from weft.gateway.stream.reconnect import FindPlace, Open, Reconnector, WorkloadLocation, read_place
from weft.gateway.stream.splice import END, Carried
from weft.objects.errors import InvalidInput, Unavailable, WeftError
from weft.protocol.frames import ClientSession, Frame, FrameType, encode_error, encode_frame, encode_json

log = logging.getLogger("weft.gateway")
GOODBYE_SECONDS = 5.0
_FINAL = (SESSION_LOST, "guestEnded", "illegalTransition", "unsupported", "noGuestAgent")


class Detached(msgspec.Struct):
    """The connection to the node is lost, the session perhaps not."""

    hint: WorkloadLocation | None = None  # where the guest went, as the agent reported
    reported: bool = False  # by the agent


class ExecStream:
    """One session of ``client``; ``client_session``: of a client that can go on with it through another gateway, or does so now.
    The rest is as in Reconnector."""

    def __init__(
        self,
        client: StreamConnection,
        claims: dict[str, Any],
        open_stream: Open,
        find_place: FindPlace,
        clock: Clock,
        client_session: ClientSession | None = None,
    ) -> None:
        self._client, self._claims, self._client_session = client, claims, client_session
        self._ledger = ExecReplay(secrets.token_hex(16), client_session)
        self._pursuit = Reconnector(claims, lambda: {"session": self._ledger.mark}, open_stream, find_place, clock)
        self._carried = Carried()
        self._news, self._acknowledged = asyncio.Event(), asyncio.Event()
        self._begun = asyncio.Event()  # the agent has reported the guest's position
        self._hung_up: asyncio.Future[None]

    async def carry(self, place: WorkloadLocation) -> Carried:
        """Carry to the session's end; the client always gets a last frame. Raises WeftError if no stream can be opened."""
        if self._client_session is not None and self._client_session.run:
            stream, place = await self._take_up(place)
        else:
            stream = await self._pursuit.open(place)
        self._hung_up = asyncio.ensure_future(self._listen())
        try:
            while (end := await self._serve(stream)) is not None:
                stream.writer.close()
                if not self._ledger.is_kept and end.hint is None:
                    raise Unavailable(
                        "the connection to its node was lost; the workload goes on",
                        reason="streamLost",
                        hint="the command may still be running",
                    )
                stream, place = await self._take_up(end.hint or place)
        except WeftError as problem:
            self._carried.result = problem.token
            await self._client.send(encode_error(problem))
        finally:
            self._hung_up.cancel()
            await asyncio.gather(self._hung_up, return_exceptions=True)
            stream.writer.close()
        return self._carried

    async def _listen(self) -> None:
        """Read from the client, while the ledger has capacity, until it has gone. Raises InvalidInput."""
        while (frame := await self._client.receive()) is not None:
            self._ledger.put(frame)
            if frame.type != FrameType.ACK:
                self._carried.bytes_in += len(frame.payload)
            self._news.set()
            while not self._ledger.has_capacity:
                self._acknowledged.clear()
                await self._acknowledged.wait()

    async def _serve(self, stream: StreamConnection) -> Detached | None:
        """Carry until the session's end (None), or until the connection to its node is lost. Raises InvalidInput."""
        sending = asyncio.ensure_future(self._send(stream))
        receiving = asyncio.ensure_future(self._receive(stream))
        try:
            await asyncio.wait((self._hung_up, receiving), return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                self._carried.result = "client gone"
                return await self._hang_up(stream, sending, receiving)
            if (end := receiving.result()) is None:
                sending.cancel()
                await stream.send(encode_frame(FrameType.HANG_UP))
            return end
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _hang_up(
        self, stream: StreamConnection, sending: asyncio.Future[None], receiving: asyncio.Future[Detached | None]
    ) -> Detached | None:
        """The client has gone: end the session in the guest, on the next node if it is just migrating. Raises InvalidInput."""
        sending.cancel()
        await stream.send(encode_frame(FrameType.HANG_UP))
        await self._pursuit.within(receiving, GOODBYE_SECONDS)
        end = receiving.result() if receiving.done() else None
        if self._hung_up.result() is None and end is not None and end.reported:
            return end
        return None

    async def _send(self, stream: StreamConnection) -> None:
        await self._begun.wait()
        self._news.set()
        while await self._news.wait():
            self._news.clear()
            while frames := self._ledger.take_unsent():
                for frame in frames:
                    if not await stream.send(frame):
                        return  # the receiving task reports it
                self._acknowledged.set()

    def _begin(self, frame: Frame) -> None:
        self._ledger.resume(_read_standing(frame))
        self._acknowledged.set()
        self._begun.set()
        if self._client_session is not None:
            session = {"key": self._ledger.key, "run": self._ledger.run}
            self._client.writer.write(encode_json(FrameType.SESSION, session))

    async def _receive(self, stream: StreamConnection) -> Detached | None:
        while (frame := await stream.receive()) is not None:
            if frame.type == FrameType.SESSION:
                self._begin(frame)
            elif frame.type == FrameType.ACK:
                self._ledger.take(int(frame.json().get("stdin", 0)))
                if self._client_session is not None:
                    await self._client.send(encode_frame(FrameType.ACK, frame.payload))
                self._acknowledged.set()
                self._news.set()
            elif frame.type == FrameType.DETACHED:
                return Detached(read_place(frame), reported=True)
            elif frame.type in (FrameType.DATA_OUT, FrameType.STDERR, *END):
                if not self._hung_up.done():  # if the client has just gone, the listening task notices it
                    await self._client.send(encode_frame(frame.type, frame.payload))
                if frame.type in END:
                    self._carried.result = "done" if frame.type == FrameType.EXIT else frame.error().token
                    return None
                self._carried.bytes_out += len(frame.payload)
                if self._ledger.arrive(frame):
                    self._news.set()
        return Detached()

    async def _take_up(self, place: WorkloadLocation) -> tuple[StreamConnection, WorkloadLocation]:
        stream, found = await self._pursuit.take_up(place, _FINAL, self._begin, "the command")
        log.info("session of %s goes on at node %s", self._claims.get("subject") or "-", found.node_uid)
        return stream, found


def _read_standing(frame: Frame) -> SessionStanding:
    try:
        return msgspec.convert(frame.json(), SessionStanding)
    except msgspec.ValidationError as problem:
        raise InvalidInput(f"the node's report on the session can't be read: {problem}") from problem
