"""One connection to an agent over which invocations go: messages out in batches, messages in one by one."""

from __future__ import annotations

import asyncio

from weft.gateway.stream.connection import Connection
from weft.protocol.invocations import FromAgent, ToAgent, Written, decode_from_agent, encode, receive

CONGESTED_BYTES = 24 * 1024 * 1024  # that wait to be sent
LATER_SECONDS = 0.25
LATER_BYTES = 8 * 1024 * 1024


class Channel:
    """``connection`` is a stream that the agent of ``node`` dialled for claims with the verb ``invocations``."""

    def __init__(self, node: str, connection: Connection) -> None:
        self.node = node
        self.told: dict[str, float] = {}  # recipes by digest, and when
        self._connection = connection
        self._waiting: list[bytes] = []
        self._written = 0
        self._afterwards: list[bytes] = []
        self._afterwards_bytes = 0
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None

    @property
    def is_congested(self) -> bool:
        """Whether what it was sent piles up."""
        return self._connection.writer.transport.get_write_buffer_size() > CONGESTED_BYTES

    def send(self, message: ToAgent) -> None:
        """Send it with all else that is sent in this turn of the loop. Raises InvalidInput for one that is too long."""
        self._waiting.append(encode(message))
        self._flush_soon()

    def report_written(self, serial: int) -> None:
        """Say that what was printed is written down up to there: once for all that is heard in this turn of the loop, and no later,
        since whatever isn't said of when this gateway is killed is told to the next one, and written twice."""
        self._written = serial
        self._flush_soon()

    def send_later(self, message: ToAgent, weight: int) -> None:
        """Send it in a moment, or once the agent keeps many bytes (``weight``) because it hasn't come: that an answer arrived is
        said when its caller has it, and not before, so that a gateway that is killed in between is told of it again."""
        self._afterwards.append(encode(message))
        self._afterwards_bytes += weight
        if self._later is None:
            self._later = asyncio.get_running_loop().call_later(LATER_SECONDS, self._send_afterwards)
        elif self._afterwards_bytes > LATER_BYTES:
            self._later.cancel()
            self._send_afterwards()

    async def receive(self) -> FromAgent | None:
        """The next message; None at the connection's end. Raises InvalidInput for what is none."""
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
