"""Lines that guests send, on their way to the node's store: so many of each, and a word about those that were too many."""

from __future__ import annotations

import threading
from typing import NamedTuple

from weft.contracts.clock import Clock
from weft.telemetry.logs.clean import clean_block

LINES_PER_SECOND, BURST_LINES = 1_000.0, 5_000.0  # of one guest
MOST_WAITING_BYTES = 1 << 20  # of one guest
MOST_BYTES_OF_ALL = 64 << 20  # while the disk is slow
MOST_GUESTS = 10_000
MARK_SECONDS = 5.0


class Received(NamedTuple):
    uid: str
    what: str
    times: list[int]  # unix microseconds
    text: bytes


class _Guest:
    def __init__(self, what: str, now: float) -> None:
        self.what, self.left, self.at = what, BURST_LINES, now
        self.times: list[int] = []
        self.lines: list[bytes] = []
        self.size = self.dropped = 0
        self.marked_at = -MARK_SECONDS


class Inbox:
    """Used in the event loop's thread, but for ``take``: that is called in the collector's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guests: dict[str, _Guest] = {}  # by uid of the workload
        self._size = 0  # bytes that wait, of all
        self._lock = threading.Lock()

    def can_take(self, uid: str) -> bool:
        """Whether another line of it would be taken now."""
        with self._lock:
            guest = self._guests.get(uid)
            return self._size < MOST_BYTES_OF_ALL and (guest is None or self._has_capacity(guest))

    def put(self, uid: str, what: str, line: bytes, dropped: int = 0) -> None:
        """A line with its newline, or only that so many were ``dropped`` before they came here. Never waits
        for the disk."""
        line = clean_block(line)
        with self._lock:
            self._put(uid, what, line, dropped)

    def _put(self, uid: str, what: str, line: bytes, dropped: int) -> None:
        guest = self._guests.get(uid)
        if guest is None:
            if len(self._guests) >= MOST_GUESTS:
                self._size -= self._guests.pop(next(iter(self._guests))).size
            guest = self._guests[uid] = _Guest(what, self._clock.elapsed())
        guest.dropped += dropped
        if not line:
            return
        if self._size >= MOST_BYTES_OF_ALL or not self._has_capacity(guest):
            guest.dropped += 1
            return
        guest.left -= 1
        guest.times.append(int(self._clock.now() * 1e6))
        guest.lines.append(line)
        guest.size += len(line)
        self._size += len(line)

    @property
    def has_lines(self) -> bool:
        return self._size > 0

    def take(self, waits: set[str]) -> list[Received]:
        """Take what has come since the last call, except from guests whose lines have to wait."""
        with self._lock:
            return self._take(waits)

    def _take(self, waits: set[str]) -> list[Received]:
        found, now = [], self._clock.elapsed()
        for uid, guest in list(self._guests.items()):
            if uid in waits:
                continue
            times, lines = guest.times, guest.lines
            self._size -= guest.size
            guest.times, guest.lines, guest.size = [], [], 0
            if guest.dropped and now - guest.marked_at >= MARK_SECONDS:
                words = f"[weft: {guest.dropped} lines that came by syslog were dropped: they were too many]\n"
                times.append(int(self._clock.now() * 1e6))
                lines.append(words.encode())
                guest.dropped, guest.marked_at = 0, now
            if lines:
                found.append(Received(uid, guest.what, times, b"".join(lines)))
            elif guest.left >= BURST_LINES and not guest.dropped:
                self._guests.pop(uid, None)
        return found

    def _has_capacity(self, guest: _Guest) -> bool:
        return self._refill(guest) >= 1 and guest.size < MOST_WAITING_BYTES

    def _refill(self, guest: _Guest) -> float:
        now = self._clock.elapsed()
        guest.left = min(BURST_LINES, guest.left + (now - guest.at) * LINES_PER_SECOND)
        guest.at = now
        return guest.left
