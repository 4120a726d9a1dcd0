"""How long endpoints took to answer: HAProxy sends one datagram for each request, and this side takes as many as it has the time
for. What finds no place in the socket's queue is dropped by the kernel, so the mean is of a sample."""

from __future__ import annotations

import contextlib
import socket
from collections import defaultdict
from pathlib import Path

MOST_TAKEN, MOST_LINE_BYTES = 2_000, 512


class Times:
    """Bound at ``path``. Raises OSError."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(str(path))
            path.chmod(0o666)  # the worker is nobody; the folder above is root's alone
        except BaseException:
            self._socket.close()
            raise

    def take(self) -> dict[tuple[str, str], float]:
        """Mean seconds by backend and server, of what came since the last call."""
        found = defaultdict[tuple[str, str], list[float]](list)
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST_TAKEN):
                line = self._socket.recv(MOST_LINE_BYTES)
                if (said := read_time(line)) is not None:
                    found[said[0], said[1]].append(said[2])
        return {key: sum(each) / len(each) for key, each in found.items()}

    def close(self) -> None:
        self._socket.close()


def read_time(line: bytes) -> tuple[str, str, float] | None:
    """Backend, server and seconds of one datagram; None where no endpoint answered. Pure."""
    words = line.decode(errors="replace").split()
    if len(words) < 4:
        return None
    backend, server, milliseconds, _ = words[-4:]
    return (backend, server, int(milliseconds) / 1000) if milliseconds.isdigit() else None
