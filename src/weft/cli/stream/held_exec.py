"""An exec session that goes on through another gateway when its own is lost: how far it has come here, and the input that its
command hasn't read yet. The guest keeps such a session for a minute; one that it doesn't keep ends with its gateway."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from weft.objects.errors import Unavailable
from weft.protocol.frames import MAX_PAYLOAD_BYTES, ClientSession, FrameType, encode_data, encode_frame, encode_json

FIND_SECONDS = 30.0
AGAIN_SECONDS = 0.2
HELD_BYTES = (
    262_144 - MAX_PAYLOAD_BYTES
)  # of input: less than a gateway holds, so that it reads what is acknowledged behind that
ACK_BYTES = 65_536
_NOT_YET = "agentServiceUnavailable"  # the reason of a gateway that the node isn't connected to


class Cut(Unavailable):
    """The connection was lost after the stream had begun."""


class HeldExec:
    """``open_stream`` opens a stream for it at a gateway that can be reached; ``elapsed`` is a clock (seconds), ``rest`` waits."""

    def __init__(
        self,
        open_stream: Callable[[ClientSession], ssl.SSLSocket],
        elapsed: Callable[[], float],
        rest: Callable[[float], object],
    ) -> None:
        self._open, self._elapsed, self._rest = open_stream, elapsed, rest
        self._key = self._run = ""
        self._is_kept = True  # until the gateway says that it isn't
        self._arrived = {FrameType.DATA_OUT: 0, FrameType.STDERR: 0}
        self._acknowledged = 0  # of both
        self._first, self._held, self._ended = 0, bytearray(), False
        self._lost_at: float | None = None

    def begin(self) -> ssl.SSLSocket:
        """Open the stream of a session that begins. Raises Unavailable."""
        return self._open(ClientSession())

    def find_again(self, lost: Unavailable) -> ssl.SSLSocket:
        """Open another stream after ``lost``. Raises that if the session isn't kept, or when no gateway was found for FIND_SECONDS;
        and what the API answers."""
        if not self._run or not (isinstance(lost, Cut) or (self._lost_at is not None and lost.token == _NOT_YET)):
            raise lost
        if self._lost_at is None:
            self._lost_at = self._elapsed()
        while self._elapsed() - self._lost_at < FIND_SECONDS:
            try:
                return self._open(self._describe())
            except Unavailable:
                self._rest(AGAIN_SECONDS)
        raise Unavailable(
            f"{lost.message}, and no other gateway was found within {FIND_SECONDS:g} s",
            reason="streamLost",
            hint="the command may still be running",
        )

    @property
    def has_capacity(self) -> bool:
        """Whether more input may be read."""
        return len(self._held) < HELD_BYTES

    def put(self, data: bytes) -> None:
        """Keep input; empty: it has ended."""
        if self._is_kept:
            self._held += data
        self._ended = self._ended or not data

    def take(self, type_: int, payload: bytes, document: Callable[[], Any]) -> bytes:
        """Note a frame of the gateway's, whose JSON is ``document``; the frame to answer it with, if any."""
        if type_ == FrameType.SESSION:
            self._key, self._run = str(document().get("key", "")), str(document().get("run", ""))
            self._lost_at, self._is_kept = None, bool(self._run)
            if not self._is_kept:
                self._held.clear()
        elif type_ == FrameType.ACK:
            self._drop(int(document().get("stdin", 0)))
        elif type_ in (FrameType.DATA_OUT, FrameType.STDERR):
            self._arrived[FrameType(type_)] += len(payload)
            out, err = self._arrived.values()
            if self._run and out + err - self._acknowledged >= ACK_BYTES:
                self._acknowledged = out + err
                return encode_json(FrameType.ACK, {"stdout": out, "stderr": err})
        return b""

    def repeat(self) -> bytes:
        """The frames of the input that the command may not have."""
        frames = b"".join(encode_data(FrameType.DATA_IN, bytes(self._held)))
        return frames + (encode_frame(FrameType.END_IN) if self._ended else b"")

    def _describe(self) -> ClientSession:
        out, err = self._arrived.values()
        self._acknowledged = out + err
        return ClientSession(self._key, self._run, out, err, self._first, self._first + len(self._held))

    def _drop(self, taken: int) -> None:
        done = min(max(0, taken - self._first), len(self._held))
        del self._held[:done]
        self._first += done
