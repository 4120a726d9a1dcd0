"""How much of a move may be on its way at once: what keeps its path busy, and no more.

A guest that stands still waits for all that was sent before it stood still. Left alone, the kernel lets megabytes queue up at
either end of a slow path: 3 MB at 100 Mbit/s, a quarter of a second of the guest's pause.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque

from weft.contracts.clock import Clock

QUEUE_SECONDS = 0.015  # of what the path carries may wait in buffers, so that no hiccup of either end leaves it idle
LEAST_BYTES = 256 << 10  # some segments of loopback: TCP stalls where fewer fit
BOUND_BYTES = 4 << 20  # a path that needs more is left to the kernel
LOOK_SECONDS = 0.05
_LOOKS = 40  # whose best counts: a machine that has little to send for a while says nothing of its path
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_INFO = struct.Struct("=120xQQ12xI")  # of Linux's tcp_info: bytes acknowledged and received, least round trip in µs


def choose_window(bytes_per_second: float, round_trip_seconds: float) -> int:
    """Bytes that may be on their way: twice the path's own content, so that one which carries more than it has shown yet shows
    it, and what may wait."""
    return max(LEAST_BYTES, int(bytes_per_second * (2 * round_trip_seconds + QUEUE_SECONDS)))


class Window:
    """Of one connection to another node, and of the machine's socket behind it. For one thread."""

    def __init__(self, plain: socket.socket, secure: socket.socket, clock: Clock) -> None:
        self._plain, self._secure, self._clock = plain, secure, clock
        self._rates = deque[float](maxlen=_LOOKS)
        self._at, self._carried = clock.elapsed(), 0
        self.bytes = 0  # 0: not bounded

    def look(self) -> None:
        """Follow what the path has carried lately; cheap to call often."""
        now = self._clock.elapsed()
        if now - self._at < LOOK_SECONDS:
            return
        try:
            told = self._secure.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            acknowledged, received, round_trip = _INFO.unpack(told)
        except (OSError, struct.error):
            return  # it has ended
        carried = max(acknowledged, received)
        self._rates.append((carried - self._carried) / (now - self._at))
        self._at, self._carried = now, carried
        wanted = choose_window(max(self._rates), round_trip / 1e6)
        if (self.bytes or wanted <= BOUND_BYTES) and not 0.8 * self.bytes < wanted < 1.25 * self.bytes:
            self.bytes = wanted
            self._bound(wanted)

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
