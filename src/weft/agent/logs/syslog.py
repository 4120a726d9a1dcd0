"""Sends lines on to a syslog as they are gathered (RFC 5424), by datagrams to a unix socket or a UDP port.

A thread sends; ``send`` only queues. A syslog that is slow or gone misses lines, and nothing waits for it: the node's store has
them.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading

from weft.contracts.clock import Clock
from weft.telemetry.logs.lines import format_time
from weft.telemetry.logs.segment import Lines

MOST_WAITING_BYTES = 8 << 20
MOST_BYTES = 8000  # of a datagram
WARN_SECONDS = 60.0
_PRIORITY = 16 * 8 + 6  # local0, informational
_log = logging.getLogger("weft.agent")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROLS[9] = " "


def make_message(at: int, node: str, what: str, line: bytes) -> bytes:
    """The datagram of a line that ``what`` printed at ``at`` (unix microseconds); control characters are written in hex. Pure."""
    text = line.decode("utf-8", "backslashreplace").translate(_CONTROLS)
    head = f"<{_PRIORITY}>1 {format_time(at)} {node} weft - - - {what}: "
    return (head + text).encode()[:MOST_BYTES].decode("utf-8", "ignore").encode()


class LineSender:
    """Sends to ``target``, the path of a socket or HOST and PORT, until it is closed."""

    def __init__(self, target: str | tuple[str, int], node: str, clock: Clock) -> None:
        self._target, self._node, self._clock = target, node, clock
        self._waiting: queue.Queue[tuple[str, Lines] | None] = queue.Queue()
        self._queued_bytes = self._taken_bytes = 0  # each counted by one thread
        self.unsent = 0  # lines that were lost on their way
        self._warned_at = -WARN_SECONDS
        self._thread = threading.Thread(target=self._run, name="syslog", daemon=True)
        self._thread.start()

    def send(self, what: str, lines: Lines) -> None:
        """Queue lines, or leave them out if too many wait."""
        if self._queued_bytes - self._taken_bytes > MOST_WAITING_BYTES:
            self._miss(len(lines.times), "it is too slow")
            return
        self._queued_bytes += len(lines.text)
        self._waiting.put((what, lines))

    def close(self, patience_seconds: float = 2.0) -> None:
        """Send what waits, if that is soon done."""
        self._waiting.put(None)
        self._thread.join(patience_seconds)

    def _run(self) -> None:
        connection: socket.socket | None = None
        while (taken := self._waiting.get()) is not None:
            what, lines = taken
            self._taken_bytes += len(lines.text)
            sent = 0
            try:
                connection = connection or _connect(self._target)
                for at, line in zip(lines.times, lines.text.split(b"\n"), strict=False):
                    connection.send(make_message(at, self._node, what, line))
                    sent += 1
            except OSError as problem:
                if connection is not None:
                    connection.close()
                connection = None
                self._miss(len(lines.times) - sent, str(problem))
        if connection is not None:
            connection.close()

    def _miss(self, lines: int, why: str) -> None:
        self.unsent += lines
        now = self._clock.elapsed()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            _log.warning("syslog takes no lines (%s): %d are not sent since the start", why, self.unsent)


def _connect(target: str | tuple[str, int]) -> socket.socket:
    """Raises OSError."""
    if isinstance(target, str):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            connection.connect(target)
        except OSError:
            connection.close()
            raise
        return connection
    family, kind, protocol, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
    connection = socket.socket(family, kind, protocol)
    connection.connect(address)
    return connection
