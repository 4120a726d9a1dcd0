"""Bounds the bytes of a migration that are on their way to what keeps its path busy.

A guest's pause includes the delivery of all bytes sent before it. By default the kernel lets megabytes queue up at either end of a
slow path: 3 MB at 100 Mbit/s, a quarter of a second of the guest's pause.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios

from weft.contracts.clock import Clock

QUEUE_SECONDS = 0.015  # of the path's rate may wait in buffers, so that a hiccup of either end doesn't leave it idle
LEAST_BYTES = 32 << 10
LEAST_SEGMENTS = 4  # with fewer on their way, either end waits for the other's timers
BOUND_BYTES = 8 << 20  # a path that needs more is left to the kernel
PLAIN_BYTES = 208 << 10  # to a machine: the kernel's default
REFRESH_SECONDS = 0.05
_BUFFER_FACTOR = 2  # the receive buffer that the kernel needs for a byte on its way
_STEP = 1.25
_SIOCOUTQ, _SIOCOUTQNSD = termios.TIOCOUTQ, 0x894B
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
# Of Linux's tcp_info: largest segment, round trip in µs, bytes acknowledged and received, least round trip.
_INFO = struct.Struct("=16xI48xI48xQQ12xI")


def adjust_window(
    window: int, wait_seconds: float, bytes_per_second: float, round_trip_seconds: float, least: int
) -> int:
    """The new bound of bytes on their way, from the current ``window`` (0: unbounded) and the ``wait_seconds`` of queued bytes.

    The queue decides, as in TCP Vegas (Brakmo, Peterson 1995), not the rate alone: a rate that a small window or a busy machine
    holds down would shrink the window further.
    """
    if wait_seconds > QUEUE_SECONDS:
        fits = int(bytes_per_second * (2 * round_trip_seconds + QUEUE_SECONDS))
        return max(least, fits, int(window / _STEP)) if window else max(least, fits)
    if window and wait_seconds < QUEUE_SECONDS / 2:
        return int(window * _STEP)
    return window


class SendWindow:
    """The window of one connection to another node, and of the machine's socket behind it. For one thread."""

    def __init__(self, plain: socket.socket, secure: socket.socket, clock: Clock) -> None:
        self._plain, self._secure, self._clock = plain, secure, clock
        self._at, self._carried = clock.elapsed(), 0
        self._waiting: int | None = None
        self._buffer = ReceiveBuffer(secure)
        self.bytes = 0  # 0: unbounded

    def note(self) -> None:
        """Measure the queued bytes before the relay waits. The least counts: bytes that gather while a busy machine delays the
        relay are no queue, and a smaller window would lower the rate."""
        with contextlib.suppress(OSError):  # it has ended
            waiting = _count(self._secure, _SIOCOUTQNSD) + _count(self._secure, termios.FIONREAD)
            waiting += _count(self._plain, _SIOCOUTQ)
            self._waiting = waiting if self._waiting is None else min(self._waiting, waiting)

    def refresh(self) -> None:
        """Adjust the window to the path's queue; cheap to call often."""
        now = self._clock.elapsed()
        if now - self._at < REFRESH_SECONDS:
            return
        self.note()
        try:
            info = self._secure.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            segment, round_trip, acknowledged, received, shortest = _INFO.unpack(info)
        except (OSError, struct.error):
            return  # it has ended
        carried = max(acknowledged, received)
        rate = (carried - self._carried) / (now - self._at)
        waiting, self._waiting = self._waiting or 0, None
        self._at, self._carried = now, carried
        wait = waiting / rate if rate else float(waiting > 0)
        if acknowledged > received:  # it sends
            wait += max(0, round_trip - shortest) / 1e6
        wanted = adjust_window(self.bytes, wait, rate, shortest / 1e6, max(LEAST_BYTES, LEAST_SEGMENTS * segment))
        if self.bytes or wanted <= BOUND_BYTES:
            self.bytes = min(wanted, BOUND_BYTES)
            self._bound(received)

    def _bound(self, received: int) -> None:
        if self.bytes:
            _set_buffer(self._secure, _SO_SNDBUFFORCE, socket.SO_SNDBUF, self.bytes)
            _set_buffer(self._plain, _SO_SNDBUFFORCE, socket.SO_SNDBUF, min(self.bytes, PLAIN_BYTES))
            self._buffer.set(self.bytes, received)


class ReceiveBuffer:
    """The kernel's receive buffer. Bytes that the other end was allowed to send and that don't fit are dropped, and sent again
    after a fifth of a second: so first the window shrinks, and the buffer after all bytes that were allowed before have come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._window = sock, 0
        self._bytes, self._safe_at = 0, 0

    def set(self, window: int, received: int) -> None:
        """Set the bound of bytes on their way, after ``received`` bytes."""
        if not self._window:
            with contextlib.suppress(OSError):  # it has ended
                self._window = self._bytes = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            _set_buffer(self._sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, self._bytes)  # the kernel makes it no larger
        if window < self._window:
            self._safe_at = max(self._safe_at, received + self._window)
        if window != self._window:
            self._window = window
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, window)
        wanted = _BUFFER_FACTOR * window
        if wanted > self._bytes or (wanted < self._bytes and received >= self._safe_at):
            self._bytes = wanted
            _set_buffer(self._sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, wanted)


def _set_buffer(sock: socket.socket, forced: int, plainly: int, size: int) -> None:
    """The kernel doubles the size, for its own overhead."""
    for option in (forced, plainly):  # without the right to the first, up to the system's limit
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, size // 2)
            return


def _count(sock: socket.socket, what: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), what, bytes(4)))[0])
