"""How much of a migration may be on its way at once: what keeps its path busy, and no more.

A guest that stands still waits for all that was sent before it stood still. Left alone, the kernel lets megabytes queue up at
either end of a slow path: 3 MB at 100 Mbit/s, a quarter of a second of the guest's pause.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios

from weft.contracts.clock import Clock

QUEUE_SECONDS = 0.015  # of what the path carries may wait in buffers, so that no hiccup of either end leaves it idle
LEAST_BYTES = 32 << 10
LEAST_SEGMENTS = 4  # with fewer on the way, either end waits for the other's timers
FIRST_BYTES, FASTEST = (
    1024 << 10,
    2_500_000_000,
)  # before anything is known: what a path of so many bytes a second needs
BOUND_BYTES = 8 << 20  # a path that needs more is left to the kernel
PLAIN_BYTES = 208 << 10  # to a machine: what the kernel takes by itself
LOOK_SECONDS = 0.05
_ROOM = 2  # times what may be on its way: what the kernel takes to keep it until it is read
_STEP = 1.25
_SIOCOUTQ, _SIOCOUTQNSD = termios.TIOCOUTQ, 0x894B
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
# Of Linux's tcp_info: largest segment, round trip in µs, bytes acknowledged and received, least round trip.
_INFO = struct.Struct("=16xI48xI48xQQ12xI")


def adjust_window(
    window: int, wait_seconds: float, bytes_per_second: float, round_trip_seconds: float, least: int
) -> int:
    """Bytes that may be on their way, where ``window`` may be now (0: as many as the kernel likes) and what is sent waits
    for ``wait_seconds``.

    What waits is the sign, as in TCP Vegas (Brakmo, Peterson 1995), not the rate alone: a rate that a small window, or a
    busy machine, has held down would make the window smaller still.
    """
    if wait_seconds > QUEUE_SECONDS:
        fits = int(bytes_per_second * (2 * round_trip_seconds + QUEUE_SECONDS))
        return max(least, fits, int(window / _STEP)) if window else max(least, fits)
    if window and wait_seconds < QUEUE_SECONDS / 2:
        return int(window * _STEP)
    return window


class Window:
    """Of one connection to another node, and of the machine's socket behind it. For one thread."""

    def __init__(self, plain: socket.socket, secure: socket.socket, clock: Clock) -> None:
        self._plain, self._secure, self._clock = plain, secure, clock
        self._at, self._carried = clock.elapsed(), 0
        self._waiting: int | None = None
        self._room = ReceiveBuffer(secure)
        self.bytes = 0  # 0: not bounded

    def note(self) -> None:
        """How much waits, before the carrier does. The least counts: what has gathered while a busy machine lets nobody carry it is
        no queue, and with less on its way it would carry less."""
        with contextlib.suppress(OSError):  # it has ended
            waiting = _count(self._secure, _SIOCOUTQNSD) + _count(self._secure, termios.FIONREAD)
            waiting += _count(self._plain, _SIOCOUTQ)
            self._waiting = waiting if self._waiting is None else min(self._waiting, waiting)

    def look(self) -> None:
        """Follow what waits on the path; cheap to call often."""
        now = self._clock.elapsed()
        if now - self._at < LOOK_SECONDS:
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
            self._room.set(self.bytes, received)


class ReceiveBuffer:
    """What the kernel keeps of what came until it is read. Bytes that it has let the other end send and can't keep when they come
    are dropped, and sent again after a fifth of a second: so first fewer are admitted, and the buffer shrinks only when
    all that was admitted before has come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._window = sock, 0
        self._bytes, self._safe_at = 0, 0

    def set(self, window: int, received: int) -> None:
        """For so many bytes on their way, where ``received`` have come."""
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
        wanted = _ROOM * window
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
