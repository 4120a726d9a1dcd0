"""Hears the one connection over which a machine says what its function prints, and how it ended.

Reads from the listening socket ``reports`` of the machine's network; writes what was printed into a pipe, and reads no more
while nobody empties that: the function then waits in its print.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from weft.drivers.runtime.qemu.clones.wire import PRINTED, TOLD_PRINTED, TROUBLE, Frames

MOST_CONNECTIONS = 100  # in a machine's life: its own program needs one
_PIECE = 65536
_MOST_PENDING = 1 << 18


class Reports:
    """``hear(kind, content)`` is called with every frame but what was printed, which goes to ``output`` if that is open: of
    TOLD_PRINTED once all that came before it is in there."""

    def __init__(self, listener: socket.socket, hear: Callable[[bytes, bytes], None], output: int = -1) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._hear = hear
        self._output = output
        self._connection: socket.socket | None = None
        self._frames = Frames()
        self._pending = bytearray()
        self._mark: bytes | None = None
        self._accepted = 0
        self._loop.add_reader(listener.fileno(), self._accept)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def hang_up(self) -> None:
        """End the connection; the next one will be taken."""
        if self._connection is not None:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()
            self._connection, self._frames = None, Frames()

    def close(self) -> None:
        self.hang_up()
        self._loop.remove_reader(self._listener.fileno())
        if self._output >= 0:
            self._loop.remove_writer(self._output)
            self._output = -1

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            self._accepted += 1
            if self._accepted > MOST_CONNECTIONS:
                self._loop.remove_reader(self._listener.fileno())
            if self._connection is not None:  # it has one already: whoever that is, it's not the machine's own program
                connection.close()
                return
            connection.setblocking(False)
            self._connection = connection
            self._loop.add_reader(connection.fileno(), self._read)

    def _read(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        for kind, content in self._frames.feed(data):
            if kind in (PRINTED, TROUBLE):
                self._print(content if kind == PRINTED else b"weft: " + content + b"\n")
            if kind == TOLD_PRINTED and self._pending:
                self._mark = content
            elif kind != PRINTED:
                self._hear(kind, content)
        if not data or self._frames.broken:
            self.hang_up()

    def _print(self, text: bytes) -> None:
        if self._output < 0:
            self._pending += text  # kept for whoever asks what was printed while it came up
            del self._pending[:-_PIECE]
            return
        self._pending += text
        self._write()

    def printed(self) -> bytes:
        return bytes(self._pending)

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._output, self._pending[:_PIECE])]
        except BlockingIOError:
            self._loop.add_writer(self._output, self._write)
            if len(self._pending) > _MOST_PENDING and self._connection is not None:
                self._loop.remove_reader(self._connection.fileno())
            return
        except OSError:  # nobody reads what it prints
            self._pending.clear()
        self._loop.remove_writer(self._output)
        if self._connection is not None:
            self._loop.add_reader(self._connection.fileno(), self._read)
        if (mark := self._mark) is not None:
            self._mark = None
            self._hear(TOLD_PRINTED, mark)
