"""The position in one exec session, and the input to send again if its connection to the guest's node is lost. Pure.

Bytes are counted from the session's beginning. The gateway keeps the input that the command hasn't read yet, since a guest that
migrates may not have got it; output that the client has is not kept. A client that can go on through another gateway keeps that
input, too, and says what it has: only that is acknowledged to the guest.
"""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.driver.runtime import SessionMark, SessionStanding
from weft.objects.errors import InvalidInput
from weft.protocol.frames import ClientSession, Frame, FrameType, encode_data, encode_frame, encode_json

HELD_BYTES = 262_144  # of input: as much as a guest accepts ahead of its command
ACK_BYTES = 65_536


class ExecReplay:
    """One session, named by ``key``. ``client_session``: of a client that can go on through another gateway, and may do so now."""

    def __init__(self, key: str, client_session: ClientSession | None = None) -> None:
        self._client_session = client_session
        before = client_session or ClientSession()
        self.key, self._run = before.key or key, before.run
        self._arrived = {FrameType.DATA_OUT: before.stdout, FrameType.STDERR: before.stderr}
        self._confirmed = dict(self._arrived)  # by the client, of one that says so
        self._acknowledged = before.stdout + before.stderr  # of both, in the last acknowledgement
        self._held = bytearray()
        self._first = self._sent = before.first  # positions of the first held byte, and of the first unsent one
        self._taken, self._end = 0, before.end  # of the input: what the command has read, and what the client has
        self._ended = self._end_sent = False
        self._size: bytes | None = None
        self._size_sent = True

    @property
    def mark(self) -> dict[str, Any]:
        """The gateway's position, for the node's agent."""
        out, err = self._arrived[FrameType.DATA_OUT], self._arrived[FrameType.STDERR]
        return msgspec.structs.asdict(SessionMark(self.key, self._run, out, err))

    @property
    def run(self) -> str:
        """The run of the guest's agent that has the session; "" of a session that isn't kept."""
        return self._run

    @property
    def is_kept(self) -> bool:
        """Whether the guest has the session when its connection is lost."""
        return bool(self._run)

    @property
    def has_capacity(self) -> bool:
        """Whether more input may be read from the client."""
        return len(self._held) < HELD_BYTES

    def put(self, frame: Frame) -> None:
        """Keep a frame of the client. Raises InvalidInput for a frame that a client may not send."""
        if frame.type == FrameType.DATA_IN:
            if not self._ended:
                self._held += frame.payload
                self.take(self._taken)
        elif frame.type == FrameType.END_IN:
            self._ended = True
        elif frame.type == FrameType.RESIZE:
            self._size, self._size_sent = frame.payload, False
        elif frame.type == FrameType.ACK and self._client_session is not None:
            self._confirm(frame.json())
        elif frame.type != FrameType.PING:
            raise InvalidInput(f"a client may not send frames of type {frame.type}")

    def take_unsent(self) -> list[bytes]:
        """The unsent frames for the agent, in order, as much as the guest accepts now."""
        frames: list[bytes] = []
        if not self._size_sent and self._size is not None:
            frames.append(encode_frame(FrameType.RESIZE, self._size))
            self._size_sent = True
        unsent = bytes(self._held[self._sent - self._first : HELD_BYTES])  # never more than the guest accepts
        frames += encode_data(FrameType.DATA_IN, unsent)
        self._sent += len(unsent)
        if not self.is_kept:
            self.take(self._sent)
        if self._ended and not self._end_sent and self._sent == self._first + len(self._held):
            frames.append(encode_frame(FrameType.END_IN))
            self._end_sent = True
        if self.is_kept and self._is_ack_due:
            out, err = self._count_confirmed().values()
            frames.append(encode_json(FrameType.ACK, {"stdout": out, "stderr": err}))
            self._acknowledged = out + err
        return frames

    def resume(self, standing: SessionStanding) -> None:
        """Send again from the guest's position. Raises InvalidInput if that input isn't held any more."""
        if not self._first <= standing.received <= max(self._first + len(self._held), self._end):
            raise InvalidInput(f"the node reports {standing.received} bytes of input, which is out of range")
        self._run = standing.run
        self.take(standing.taken)
        self._sent = max(standing.received, self._first)
        self._end_sent = standing.ended
        self._size_sent = self._size is None
        self._acknowledged = sum(self._count_confirmed().values())

    def take(self, taken: int) -> None:
        """The command has read ``taken`` bytes of input in all: drop them, also those that the client sends again."""
        self._taken = max(self._taken, taken)
        done = min(max(0, self._taken - self._first), len(self._held))
        del self._held[:done]
        self._first += done
        self._sent = max(self._sent, self._first)

    def arrive(self, frame: Frame) -> bool:
        """The client has this output. Whether to acknowledge it to the agent now."""
        self._arrived[FrameType(frame.type)] += len(frame.payload)
        return self._is_ack_due

    @property
    def _is_ack_due(self) -> bool:
        return sum(self._count_confirmed().values()) - self._acknowledged >= ACK_BYTES

    def _count_confirmed(self) -> dict[FrameType, int]:
        return self._arrived if self._client_session is None else self._confirmed

    def _confirm(self, has: Any) -> None:
        """The client has so much output. Raises InvalidInput for anything else."""
        for type_, name in ((FrameType.DATA_OUT, "stdout"), (FrameType.STDERR, "stderr")):
            count = has.get(name) if isinstance(has, dict) else None
            if not isinstance(count, int) or not self._confirmed[type_] <= count <= self._arrived[type_]:
                raise InvalidInput(f"the client acknowledges output that it wasn't sent: {str(has)[:80]}")
            self._confirmed[type_] = count
