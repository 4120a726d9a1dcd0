"""An instance's output: read from its pipe at a bounded rate, passed on in whole lines, its end kept for the answer.

An instance that prints without end fills the pipe and waits: it slows only itself. What is read of one invocation has a bound, too,
whatever a clock says: as much as the rate allows in the time that the invocation may take.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

TAIL_BYTES = 4096
PIECE_BYTES = 65536
BYTES_PER_SECOND = 1 << 20
BURST_BYTES = 4 << 20
MOST_LINE_BYTES = 16384


def _find_most(seconds: float) -> int:
    return BURST_BYTES + int(seconds * BYTES_PER_SECOND)


class OutputReader:
    """Reads ``descriptor`` (non-blocking) until it ends or ``close``."""

    def __init__(self, descriptor: int, deliver: Callable[[bytes], None]) -> None:
        self._descriptor, self._deliver = descriptor, deliver
        self._loop = asyncio.get_running_loop()
        self._credit, self._at = float(BURST_BYTES), self._loop.time()
        self._left = BURST_BYTES
        self._line = b""
        self._tail = b""
        self._resting: asyncio.TimerHandle | None = None
        self._reading = True
        self._loop.add_reader(descriptor, self._on_readable)

    def begin(self, seconds: float) -> None:
        """Later output belongs to the start, or to another invocation, which may take so long."""
        self.catch_up()
        self._tail, self._left = b"", _find_most(seconds)
        if self._reading and self._resting is None:
            self._loop.add_reader(self._descriptor, self._on_readable)

    def tail(self) -> bytes:
        """The end of the output since ``begin``."""
        self.catch_up()
        return self._tail

    def catch_up(self) -> None:
        """Read the pipe's content, as far as the rate allows it."""
        while self._reading and self._resting is None and self._read():
            pass

    def close(self) -> None:
        """Read no more; the descriptor stays open."""
        if self._reading:
            self.catch_up()
        if self._reading:
            self._close_at_end()
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _on_readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """False: there is no more for now."""
        now = self._loop.time()
        self._credit = min(BURST_BYTES, self._credit + (now - self._at) * BYTES_PER_SECOND)
        self._at = now
        if self._left < 1:
            self._loop.remove_reader(self._descriptor)  # until the next invocation
            return False
        if self._credit < 1:
            self._rest()
            return False
        try:
            piece = os.read(self._descriptor, min(PIECE_BYTES, int(self._credit) + 1, self._left))
        except BlockingIOError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self._close_at_end()
            return False
        self._credit -= len(piece)
        self._left -= len(piece)
        self._tail = (self._tail + piece)[-TAIL_BYTES:]
        self._deliver_lines(piece)
        return True

    def _close_at_end(self) -> None:
        self._reading = False
        self._loop.remove_reader(self._descriptor)
        if self._line:
            self._deliver(self._line + b"\n")
            self._line = b""

    def _deliver_lines(self, piece: bytes) -> None:
        whole, newline, rest = (self._line + piece).rpartition(b"\n")
        if newline:
            self._deliver(whole + newline)
        self._line = rest
        if len(self._line) > MOST_LINE_BYTES:
            self._deliver(self._line)
            self._line = b""

    def _rest(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._resting = self._loop.call_later(0.25, self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        if self._reading:
            self._loop.add_reader(self._descriptor, self._on_readable)
