"""How much of a move may be on its way at once: what keeps its path busy, and no more.

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
LEAST_SEGMENTS = 4  # with room for fewer, either end waits for the other's timers
BOUND_BYTES = 8 << 20  # a path that needs more is left to the kernel
LOOK_SECONDS = 0.05
_STEP = 1.25
_SIOCOUTQ = termios.TIOCOUTQ
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
# Of Linux's tcp_info: largest segment, round trip in µs, bytes acknowledged and received, bytes not sent yet, least round trip.
_INFO = struct.Struct("=16xI48xI48xQQ8xII")


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
        self.bytes = 0  # 0: not bounded

    def look(self) -> None:
        """Follow what waits on the path; cheap to call often."""
        now = self._clock.elapsed()
        if now - self._at < LOOK_SECONDS:
            return
        try:
            told = self._secure.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            segment, round_trip, acknowledged, received, unsent, shortest = _INFO.unpack(told)
            sends = acknowledged > received
            waits = unsent if sends else _count(self._secure, termios.FIONREAD) + _count(self._plain, _SIOCOUTQ)
        except (OSError, struct.error):
            return  # it has ended
        carried = max(acknowledged, received)
        rate = (carried - self._carried) / (now - self._at)
        self._at, self._carried = now, carried
        wait = waits / rate if rate else float(waits > 0)
        if sends:
            wait += max(0, round_trip - shortest) / 1e6
        wanted = adjust_window(self.bytes, wait, rate, shortest / 1e6, max(LEAST_BYTES, LEAST_SEGMENTS * segment))
        if wanted != self.bytes and (self.bytes or wanted <= BOUND_BYTES):
            self.bytes = min(wanted, BOUND_BYTES)
            self._bound(self.bytes)

    def _bound(self, most: int) -> None:
        """The kernel takes each as half of what it allows, its own overhead included."""
        for sock, forced, plainly in (
            (self._secure, _SO_SNDBUFFORCE, socket.SO_SNDBUF),
            (self._secure, _SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (self._plain, _SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            for option in (forced, plainly):  # without the right to the first, up to the system's limit
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, option, most // 2)
                    break


def _count(sock: socket.socket, what: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), what, bytes(4)))[0])
