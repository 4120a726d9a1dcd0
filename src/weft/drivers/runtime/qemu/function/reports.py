"""Receives a machine's reports over its one connection: what its function prints, and how it ended.

Reads from the listening socket ``reports`` of the machine's network; writes what was printed into a pipe, and reads no more
while nobody empties that: the function then waits in its print. The sender may be its function's code as well as its own
program, so many small frames are read no faster than that costs little.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from weft.drivers.runtime.qemu.function.messages import OUTPUT_READ, PRINTED, TROUBLE, Frames

MOST_CONNECTIONS = 100  # in a machine's life: its own program needs one
_PIECE = 65536
_MOST_PENDING = 1 << 18
_FRAMES_AT_ONCE = 200  # then nothing is read for a moment
_FRAME_SECONDS = 100e-6  # of that moment, for each: some twenty times what it costs to take it


class Reports:
    """``on_report(kind, content)`` is called with every frame but what was printed, which goes to ``output`` if that is open;
    with OUTPUT_READ once all that came before it is in there."""

    def __init__(self, listener: socket.socket, on_report: Callable[[bytes, bytes], None], output: int = -1) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._on_report = on_report
        self._output = output
        self._connection: socket.socket | None = None
        self._frames = Frames()
        self._pending = bytearray()
        self._mark: bytes | None = None
        self._accepted = 0
        self._taken = 0
        self._resting: asyncio.TimerHandle | None = None
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
        if self._resting is not None:
            self._resting.cancel()
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
            if self._connection is not None:  # it has one already: this is not the machine's own program
                connection.close()
                return
            connection.setblocking(False)
            self._connection = connection
            self._listen()

    def _read(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        frames = self._frames.feed(data)
        for kind, content in frames:
            if kind in (PRINTED, TROUBLE):
                self._pending += content if kind == PRINTED else b"weft: " + content + b"\n"
            if kind == OUTPUT_READ and self._pending:
                self._mark = content
            elif kind != PRINTED:
                self._on_report(kind, content)
        if self._output < 0:
            del self._pending[:-_PIECE]  # kept for those who ask what was printed while it came up
        if not data or self._frames.broken:
            self.hang_up()
        self._taken += len(frames)
        if self._taken > _FRAMES_AT_ONCE and self._resting is None:
            self._resting = self._loop.call_later(self._taken * _FRAME_SECONDS, self._go_on)
        self._write()

    def _go_on(self) -> None:
        self._resting, self._taken = None, 0
        self._listen()

    def _listen(self) -> None:
        """Listen to the connected sender, unless too much waits to be passed on, or it sent too much at once."""
        if self._connection is None:
            return
        if self._resting is not None or (self._output >= 0 and len(self._pending) > _MOST_PENDING):
            self._loop.remove_reader(self._connection.fileno())
        else:
            self._loop.add_reader(self._connection.fileno(), self._read)

    def printed(self) -> bytes:
        return bytes(self._pending)

    def _write(self) -> None:
        try:
            while self._pending and self._output >= 0:
                del self._pending[: os.write(self._output, self._pending[:_PIECE])]
        except BlockingIOError:
            self._loop.add_writer(self._output, self._write)
            self._listen()
            return
        except OSError:  # nobody reads what it prints
            self._pending.clear()
        if self._output >= 0:
            self._loop.remove_writer(self._output)
        self._listen()
        if (mark := self._mark) is not None and not self._pending:
            self._mark = None
            self._on_report(OUTPUT_READ, mark)
