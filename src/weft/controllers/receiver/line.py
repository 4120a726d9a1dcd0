"""One connection to a receiver: judged, encrypted, cut off when its time is up, and read up to a bound. Everything here blocks."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Collection, Sequence

import msgspec

from weft.controllers.receiver.destination import Network, find_places

SECONDS = 10.0  # that one attempt may take
MOST_READ = 64 * 1024  # bytes of an answer


class Way(msgspec.Struct, frozen=True):
    """``allowed``: networks of this machine, of links and private ones that receivers may be in; ``nodes``: addresses of nodes."""

    allowed: Sequence[Network] = ()
    nodes: Collection[str] = frozenset()


class ReceiverConnection:
    """One connection at most. ``cut`` ends it from another thread."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._hold: socket.socket | None = None  # the same connection, whatever wraps the first one
        self._over = False
        self.is_open_place = True  # a stranger's: its answers are nobody's secret

    def connect(self, host: str, port: int) -> socket.socket:
        """Raises OSError."""
        problem: OSError | None = None
        for (family, place), was_allowed in find_places(host, port, self._way.allowed, self._way.nodes):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(SECONDS)
            try:
                self._hold_on(sock)
                sock.connect(place)
            except OSError as refused:
                sock.close()
                problem = refused
                continue
            self.is_open_place = not was_allowed
            return sock
        raise problem or OSError(f"{host} has no address")

    def _hold_on(self, sock: socket.socket) -> None:
        self.release()
        self._hold = sock.dup()
        if self._over:
            raise TimeoutError("no time is left")

    def cut(self) -> None:
        self._over = True
        if self._hold is not None:
            with contextlib.suppress(OSError):
                self._hold.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.close()


def make_context(ca: str) -> ssl.SSLContext:
    """Trusts the system's certificates, and those of ``ca`` (PEM). Raises OSError."""
    context = ssl.create_default_context()
    if ca:
        context.load_verify_locations(cadata=ca)
    return context
