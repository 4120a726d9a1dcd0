"""Sends the audit log's records to syslog as they are written (RFC 5424), by datagrams to a unix socket or a UDP port.

A thread sends; ``send`` only queues. A syslog that is slow or gone misses records, and no request waits: the log's files have all.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import socket
import threading
from collections.abc import Sequence

import msgspec

from weft.contracts.clock import Clock
from weft.trust.audit_chain import AuditRecord

MOST_WAITING = 10_000  # records
MOST_BYTES = 8000  # of a datagram's record; longer ones go without their objects' changes
WARN_SECONDS = 60.0
_LEVELS = {"allowed": logging.INFO, "refused": logging.WARNING, "failed": logging.WARNING}
_log = logging.getLogger("weft.audit")


class SyslogSender:
    """Sends to ``target`` until it is closed."""

    def __init__(self, target: str | tuple[str, int], clock: Clock) -> None:
        self._target = target
        self._clock = clock
        self._waiting: queue.Queue[tuple[bytes, AuditRecord] | None] = queue.Queue(MOST_WAITING)
        self.unsent = 0  # records that were lost on their way
        self._warned_at = -WARN_SECONDS
        self._thread = threading.Thread(target=self._run, name="syslog", daemon=True)
        self._thread.start()

    def send(self, line: bytes, record: AuditRecord) -> None:
        """Queue a record's line. Returns at once; a record that finds no place is not sent."""
        try:
            self._waiting.put_nowait((line, record))
        except queue.Full:
            self.unsent += 1
            self._warn(f"{MOST_WAITING} records wait")

    def close(self, patience_seconds: float = 2.0) -> None:
        """Send what waits, if that is soon done."""
        try:
            self._waiting.put(None, timeout=patience_seconds)
        except queue.Full:
            return
        self._thread.join(patience_seconds)

    def _run(self) -> None:
        handler: _Handler | None = None
        while (taken := self._waiting.get()) is not None:
            line, record = taken
            try:
                handler = handler or _Handler(self._target)
                handler.send(line if len(line) <= MOST_BYTES else _shorten(line), record)
            except OSError as problem:
                self.unsent += 1
                if handler is not None:
                    handler.close()
                handler = None
                self._warn(problem)
        if handler is not None:
            handler.close()

    def _warn(self, problem: OSError | str) -> None:
        now = self._clock.elapsed()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            _log.warning("syslog takes no audit records (%s): %d are not sent since the start", problem, self.unsent)


class _Handler(logging.handlers.SysLogHandler):
    """The standard library's handler, with the header of RFC 5424, and errors for its caller."""

    append_nul = False

    def __init__(self, target: str | tuple[str, int]) -> None:
        super().__init__(target, self.LOG_AUTHPRIV)
        self._host = socket.gethostname()

    def send(self, line: bytes, record: AuditRecord) -> None:
        """Raises OSError."""
        text = f"1 {record.at} {self._host} weft {os.getpid()} audit - {line.decode()}"
        self.emit(logging.LogRecord("weft.audit", _LEVELS[record.outcome], "", 0, text, None, None))

    def handleError(self, record: logging.LogRecord) -> None:
        raise


def _shorten(line: bytes) -> bytes:
    """The record without its objects: the number finds the whole one in the log."""
    whole = msgspec.json.decode(line)
    objects: Sequence[object] = whole.pop("objects", ())
    return msgspec.json.encode({**whole, "path": whole.get("path", "")[:200], "objects_left_out": len(objects)})
