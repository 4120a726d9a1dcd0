"""One connection to an agent over which invocations go: messages out in batches, messages in one by one."""

from __future__ import annotations

import asyncio

from weft.gateway.stream.connection import StreamConnection
from weft.protocol.invocations import FromAgent, ServeLocally, ToAgent, Written, decode_from_agent, encode, receive

CONGESTED_BYTES = 24 * 1024 * 1024  # that wait to be sent
LATER_SECONDS = 0.25
LATER_BYTES = 8 * 1024 * 1024


class Channel:
    """``connection`` is a stream that the agent of ``node`` dialled for claims with the verb ``invocations``."""

    def __init__(self, node: str, connection: StreamConnection) -> None:
        self.node = node
        self.defined: dict[str, float] = {}  # when the agent got a recipe, by digest
        self.listed: ServeLocally | None = None  # the functions that it serves at its own address, as it last got them
        self.listed_at: float | None = None
        self._connection = connection
        self._waiting: list[bytes] = []
        self._written = 0
        self._afterwards: list[bytes] = []
        self._afterwards_bytes = 0
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None

    @property
    def is_congested(self) -> bool:
        """Whether messages pile up."""
        return self._connection.writer.transport.get_write_buffer_size() > CONGESTED_BYTES

    def send(self, message: ToAgent) -> None:
        """Send it together with the other messages of this turn of the loop. Raises InvalidInput for one that is too long."""
        self._waiting.append(encode(message))
        self._flush_soon()

    def report_written(self, serial: int) -> None:
        """Acknowledge printed lines up to ``serial``: once for all messages of this turn of the loop, and no later, since the next
        gateway gets again what this one didn't acknowledge before a kill, and stores it twice."""
        self._written = serial
        self._flush_soon()

    def send_later(self, message: ToAgent, weight: int) -> None:
        """Send it in a moment, or once the agent keeps many bytes (``weight``) because of late messages: an answer is acknowledged
        after its caller has it, so that the agent sends it again if the gateway is killed before that."""
        self._afterwards.append(encode(message))
        self._afterwards_bytes += weight
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATER_SECONDS, self._send_afterwards)
        elif self._afterwards_bytes > LATER_BYTES:
            self._later.cancel()
            self._send_afterwards()

    async def receive(self) -> FromAgent | None:
        """The next message; None at the connection's end. Raises InvalidInput for anything else."""
        body = await receive(self._connection.reader)
        return None if body is None else decode_from_agent(body)

    def close(self) -> None:
        for handle in (self._soon, self._later):
            if handle is not None:
                handle.cancel()
        self._connection.writer.close()

    def _send_afterwards(self) -> None:
        self._later = None
        afterwards, self._afterwards, self._afterwards_bytes = self._afterwards, [], 0
        self._connection.writer.write(b"".join(afterwards))

    def _flush_soon(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._soon = None
        if self._written:
            self._waiting.append(encode(Written(self._written)))
            self._written = 0
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._connection.writer.write(b"".join(waiting))
