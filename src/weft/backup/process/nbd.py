"""A client of the Network Block Device protocol over a Unix socket: reads and writes a disk that qemu-nbd has open.

Source: the NBD project's doc/proto.md: fixed newstyle handshake, NBD_OPT_GO, simple replies. Blocks; writes, and reads that follow
each other, are sent ahead of their answers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from weft.backup.parts import drop_front
from weft.objects.errors import DriverFailed

_MAGIC, _OPTION, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _SIMPLE = 0x25609513, 0x67446698
_OPT_GO = 7
_REP_ACK, _REP_INFO = 1, 3
_READ, _WRITE, _DISCONNECT, _FLUSH, _ZEROES = 0, 1, 2, 3, 6
_NO_HOLE = 2  # NBD_CMD_FLAG_NO_HOLE
MOST_BYTES = 32 << 20  # of one request; the protocol promises this much
_WRITES_AHEAD = 15  # without an answer; qemu-nbd works on 16 requests
_READS_AHEAD = 4  # likewise, of those in order


class NbdClient:
    """A client of the export ``""`` at the socket ``path``. Raises DriverFailed, and OSError where the server is gone."""

    def __init__(self, path: str) -> None:
        self._socket, self._unanswered = socket.socket(socket.AF_UNIX), 0
        try:
            self._socket.settimeout(60.0)
            self._socket.connect(path)
            self.size = self._shake_hands()
        except BaseException:
            self._socket.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            size = min(length, MOST_BYTES)
            self._ask(_READ, offset, size)
            parts.append(self._receive(size))
            offset, length = offset + size, length - size
        return b"".join(parts)

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of each range (offset, and length of at most ``MOST_BYTES``), in order. The server reads ahead meanwhile, so
        make no other request until the iterator has ended."""
        self._await_answers(0)
        wanted: deque[tuple[int, int]] = deque()  # number and length of what was asked
        came: dict[int, bytes] = {}
        try:
            for number, (offset, length) in enumerate(ranges):
                self._send([memoryview(struct.pack(">IHHQQI", _REQUEST, 0, _READ, number, offset, length))])
                wanted.append((number, length))
                if len(wanted) > _READS_AHEAD:
                    yield self._take(wanted, came)
            while wanted:
                yield self._take(wanted, came)
        except GeneratorExit:
            self._socket.close()  # its answers would be taken for those of others
            raise

    def _take(self, wanted: deque[tuple[int, int]], came: dict[int, bytes]) -> bytes:
        """Take the answer to the first of ``wanted``. Answers come in any order."""
        first, _ = wanted[0]
        lengths = dict(wanted)
        while first not in came:
            number = self._receive_answer()
            if number not in lengths or number in came:
                raise DriverFailed("the disk's server answers what was not asked", details={"step": "disk"})
            came[number] = self._receive(lengths[number])
        wanted.popleft()
        return came.pop(first)

    def write(self, offset: int, data: bytes) -> None:
        """It may fail in a later call. Nothing is written twice before a flush, so the order doesn't matter."""
        for at in range(0, len(data), MOST_BYTES):
            self.write_parts(offset + at, [memoryview(data)[at : at + MOST_BYTES]])

    def write_parts(self, offset: int, parts: Sequence[memoryview]) -> None:
        """The same of at most ``MOST_BYTES``, one part after the other."""
        self._ask(_WRITE, offset, sum(len(part) for part in parts), parts, ahead=_WRITES_AHEAD)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes: what was there before, or is below, shows no more."""
        while length:
            size = min(length, 1 << 30)
            self._ask(_ZEROES, offset, size)
            offset, length = offset + size, length - size

    def flush(self) -> None:
        """Flush: what was written is durable once it returns."""
        self._ask(_FLUSH, 0, 0)

    def begin_flush(self) -> None:
        """Have what was written so far brought to the disk while more is written. It may fail in a later call."""
        self._ask(_FLUSH, 0, 0, ahead=_WRITES_AHEAD)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the server is gone
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _shake_hands(self) -> int:
        magic, option, flags = struct.unpack(">QQH", self._receive(18))
        if magic != _MAGIC or option != _OPTION or not flags & 1:
            raise DriverFailed("the disk's server does not speak NBD", details={"step": "disk"})
        self._socket.sendall(struct.pack(">I", 1 | (flags & 2)))
        data = struct.pack(">IH", 0, 0)  # the export "", and no further questions
        self._socket.sendall(struct.pack(">QII", _OPTION, _OPT_GO, len(data)) + data)
        size = -1
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            body = self._receive(length) if length < 1 << 16 else b""
            if magic != _REPLY or kind & 1 << 31:
                raise DriverFailed(f"the disk's server refuses: {body[:200]!r}", details={"step": "disk"})
            if kind == _REP_INFO and struct.unpack(">H", body[:2]) == (0,):
                size = struct.unpack(">Q", body[2:10])[0]
            elif kind == _REP_ACK:
                return size

    def _ask(self, command: int, offset: int, length: int, data: Sequence[memoryview] = (), ahead: int = 0) -> None:
        """Returns once at most ``ahead`` requests have no answer yet. One that must not overtake others waits for theirs first."""
        if not ahead:
            self._await_answers(0)
        self._send([memoryview(struct.pack(">IHHQQI", _REQUEST, 0, command, 1, offset, length)), *data])
        self._unanswered += 1
        self._await_answers(ahead)

    def _await_answers(self, most: int) -> None:
        while self._unanswered > most:
            self._unanswered -= 1
            self._receive_answer()

    def _receive_answer(self) -> int:
        """Its number. Raises DriverFailed."""
        magic, error, number = struct.unpack(">IIQ", self._receive(16))
        if magic != _SIMPLE or error:
            raise DriverFailed(f"the disk could not be read or written (error {error})", details={"step": "disk"})
        return int(number)

    def _send(self, parts: Sequence[memoryview]) -> None:
        while parts:
            parts = drop_front(parts, self._socket.sendmsg(parts))

    def _receive(self, length: int) -> bytes:
        received = bytearray(length)
        view = memoryview(received)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("the disk's server has gone")
            view = view[count:]
        return bytes(received)
