"""Carries bytes between a machine's unix socket and a TLS connection to the other node, both ways, until one side ends.

One thread per connection: it encrypts without holding up the agent's loop, and at a fraction of what a stream of asyncio
costs. Counts what goes over and keeps to the limits; decides nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence

from weft.agent.migration.window import Window
from weft.contracts.clock import Clock

BUFFER_BYTES = 256 << 10
LONGEST_WAIT_SECONDS = 0.5
LINGER_SECONDS = 5.0
BURST_SECONDS = 0.05  # how much of its rate a limit lets through at once
_LEAST_BURST = 64 << 10


class Limit:
    """So many bytes a second, shared by all that take from it; 0: no limit. Safe between threads."""

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._lock = threading.Lock()
        self._left, self._at = 0.0, clock.elapsed()

    def set(self, bytes_per_second: int) -> None:
        with self._lock:
            self._rate = bytes_per_second

    def take(self, most: int) -> int:
        """How many of ``most`` bytes may go now; 0: none yet."""
        with self._lock:
            if not self._rate:
                return most
            now, burst = self._clock.elapsed(), max(_LEAST_BURST, self._rate * BURST_SECONDS)
            self._left = min(burst, self._left + (now - self._at) * self._rate)
            self._at = now
            taken = min(most, int(self._left)) if self._left >= burst / 4 else 0  # few large pieces cost less than many
            self._left -= taken
            return taken

    def give_back(self, unused: int) -> None:
        with self._lock:
            self._left += unused


def take_from_all(limits: Sequence[Limit], most: int) -> int:
    """How many of ``most`` bytes may go now by each of them; what only some would let through is theirs again."""
    taken = [most]
    for limit in limits:
        taken.append(limit.take(taken[-1]))
    for limit, got in zip(limits, taken[1:], strict=True):
        limit.give_back(got - taken[-1])
    return taken[-1]


def wait_for_all(limits: Sequence[Limit], most: int) -> int:
    """As many as may go, once some may. Blocks."""
    while not (taken := take_from_all(limits, most)):
        select.select([], [], [], BURST_SECONDS / 4)
    return taken


class Meter:
    """Bytes of one migration that were carried, as plain text and without what TLS adds. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.received = 0

    def add(self, sent: int, received: int) -> None:
        with self._lock:
            self.sent += sent
            self.received += received


class Relay:
    """One connection: ``plain`` is this node's machine, ``secure`` the other node, its handshake done. What goes out keeps to
    ``limits``, what comes in to ``incoming``; ``first`` has come already."""

    def __init__(
        self,
        plain: socket.socket,
        secure: ssl.SSLSocket,
        meter: Meter,
        limits: Iterable[Limit],
        clock: Clock,
        *,
        incoming: Iterable[Limit] = (),
        first: bytes = b"",
    ) -> None:
        self._plain, self._secure, self._meter, self._clock = plain, secure, meter, clock
        self._limits, self._incoming, self._first = list(limits), list(incoming), first
        self._window = Window(plain, secure, clock)
        self._cut = threading.Event()

    def cut(self) -> None:
        """End it now, from any thread: what is under way is lost."""
        self._cut.set()
        for side in (self._plain, self._secure):
            with contextlib.suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(side, socket.SHUT_RDWR)  # not the TLS one's: that isn't for two threads

    def run(self) -> None:
        """Carry until either side has ended; what it had sent is delivered first. Closes both."""
        try:
            self._plain.setblocking(False)
            self._secure.setblocking(False)
            self._carry()
        except OSError:
            pass  # a lost connection: the machines at both ends notice by their sockets
        finally:
            self._plain.close()
            self._secure.close()

    def _carry(self) -> None:
        into, outof = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES)
        out, back = memoryview(b""), memoryview(self._first)  # what is still unsent
        self._meter.add(0, len(back))
        while not self._cut.is_set():
            waits: set[str] = set()  # plain-in, plain-out, secure-in, secure-out, limit
            active = False
            self._window.look()
            if not out:
                out, ended = self._read_plain(into, waits)
                active |= bool(out)
                if ended:  # what came for the machine meanwhile is of no use to anybody
                    self._end_secure(outof)
                    return
            if out:
                sent = self._write_secure(out, waits)
                out = out[sent:]
                active |= sent > 0
            if not back:
                back, ended = self._read_secure(outof, waits)
                active |= bool(back)
                if ended:
                    return
            if back:
                written = self._write_plain(back, waits)
                back = back[written:]
                active |= written > 0
            if not active:
                self._wait(waits)

    def _read_plain(self, buffer: bytearray, waits: set[str]) -> tuple[memoryview, bool]:
        allowed = take_from_all(self._limits, min(BUFFER_BYTES, self._window.bytes or BUFFER_BYTES))
        try:
            count = self._plain.recv_into(buffer, allowed) if allowed else -1
        except BlockingIOError:
            count = -1
            waits.add("plain-in")
        if not allowed:
            waits.add("limit")
        for limit in self._limits:
            limit.give_back(allowed - max(0, count))
        return memoryview(buffer)[: max(0, count)], count == 0

    def _write_plain(self, data: memoryview, waits: set[str]) -> int:
        try:
            return self._plain.send(data)
        except BlockingIOError:
            waits.add("plain-out")
            return 0

    def _write_secure(self, data: memoryview, waits: set[str]) -> int:
        try:
            sent = self._secure.send(data)
        except ssl.SSLWantWriteError:
            waits.add("secure-out")
            return 0
        except ssl.SSLWantReadError:
            waits.add("secure-in")
            return 0
        self._meter.add(sent, 0)
        return sent

    def _read_secure(self, buffer: bytearray, waits: set[str]) -> tuple[memoryview, bool]:
        most = min(BUFFER_BYTES, self._window.bytes or BUFFER_BYTES)
        count, allowed = 0, take_from_all(self._incoming, most)
        if not allowed:
            waits.add("limit")
        try:
            while count < allowed:  # a read gives one record
                got = self._secure.recv_into(memoryview(buffer)[count:allowed])
                if not got:
                    if count:
                        break  # said again by the next read
                    return memoryview(b""), True
                count += got
        except ssl.SSLWantReadError:
            waits.add("secure-in")
        except ssl.SSLWantWriteError:
            waits.add("secure-out")
        for limit in self._incoming:
            limit.give_back(allowed - count)
        self._meter.add(0, count)
        return memoryview(buffer)[:count], False

    def _wait(self, waits: set[str]) -> None:
        self._window.note()
        masks = dict.fromkeys((self._plain.fileno(), self._secure.fileno()), 0)
        for what in waits - {"limit"}:
            side = self._plain if what.startswith("plain") else self._secure
            masks[side.fileno()] |= select.POLLIN if what.endswith("in") else select.POLLOUT
        poll = select.poll()
        for descriptor, mask in masks.items():
            if mask:
                poll.register(descriptor, mask)
        poll.poll((BURST_SECONDS / 4 if "limit" in waits else LONGEST_WAIT_SECONDS) * 1000)

    def _end_secure(self, buffer: bytearray) -> None:
        """Say that nothing more comes, and wait until the other node has read it: to close with bytes unread would throw
        away what is still under way."""
        deadline = self._clock.elapsed() + LINGER_SECONDS
        said = False
        while not self._cut.is_set() and self._clock.elapsed() < deadline:
            waits: set[str] = set()
            if not said:
                try:
                    self._secure.unwrap()
                    return
                except ssl.SSLWantReadError:
                    said = True
                except ssl.SSLWantWriteError:
                    waits.add("secure-out")
            if said:
                _, ended = self._read_secure(buffer, waits)
                if ended:
                    return
            self._wait(waits)
