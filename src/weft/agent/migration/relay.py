"""Relays bytes between a machine's unix socket and a TLS connection to the other node, both ways, until one of them ends.

One thread per connection: it encrypts without blocking the agent's loop, at a fraction of the cost of an asyncio stream. Counts
the bytes and keeps to the limits; decides nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterable, Sequence

from weft.agent.migration.window import SendWindow
from weft.contracts.clock import Clock

BUFFER_BYTES = 256 << 10
LONGEST_WAIT_SECONDS = 0.5
LINGER_SECONDS = 5.0
BURST_SECONDS = 0.05  # how much of its rate a limit lets through at once
_LEAST_BURST = 64 << 10


class Limit:
    """A rate in bytes a second, shared by all that take from it; 0: no limit. Thread-safe."""

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._rate, self._clock = bytes_per_second, clock
        self._lock = threading.Lock()
        self._left, self._at = 0.0, clock.elapsed()

    def set(self, bytes_per_second: int) -> None:
        with self._lock:
            self._rate = bytes_per_second

    def take(self, most: int) -> int:
        """How many of ``most`` bytes may be sent now."""
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
    """How many of ``most`` bytes all limits allow now."""
    taken = [most]
    for limit in limits:
        taken.append(limit.take(taken[-1]))
    for limit, got in zip(limits, taken[1:], strict=True):
        limit.give_back(got - taken[-1])
    return taken[-1]


def wait_for_all(limits: Sequence[Limit], most: int) -> int:
    """How many of ``most`` bytes all limits allow, as soon as they allow some. Blocks."""
    while not (taken := take_from_all(limits, most)):
        select.select([], [], [], BURST_SECONDS / 4)
    return taken


class Meter:
    """Counts the bytes of one migration, without TLS's overhead. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.received = 0

    def add(self, sent: int, received: int) -> None:
        with self._lock:
            self.sent += sent
            self.received += received


class Relay:
    """One connection: ``plain`` is this node's machine, ``secure`` the other node, after its handshake. ``limits`` bound the
    outgoing rate, ``incoming`` the incoming one; ``first`` has arrived already."""

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
        self._window = SendWindow(plain, secure, clock)
        self._cut = threading.Event()

    def cut(self) -> None:
        """End it now, from any thread; bytes on their way are lost."""
        self._cut.set()
        for end in (self._plain, self._secure):
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(end, socket.SHUT_RDWR)  # the socket's: TLS's own isn't thread-safe

    def run(self) -> None:
        """Relay until either end has closed and its bytes are delivered. Closes both."""
        try:
            self._plain.setblocking(False)
            self._secure.setblocking(False)
            self._carry()
        except OSError:
            pass  # a lost connection: the machines at both ends notice it
        finally:
            self._plain.close()
            self._secure.close()

    def _carry(self) -> None:
        into, outof = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES)
        out, back = memoryview(b""), memoryview(self._first)  # unsent bytes
        self._meter.add(0, len(back))
        while not self._cut.is_set():
            waits: set[str] = set()  # plain-in, plain-out, secure-in, secure-out, limit
            active = False
            self._window.refresh()
            if not out:
                out, ended = self._read_plain(into, waits)
                active |= bool(out)
                if ended:  # the machine reads no more
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
                        break  # the next read returns the end again
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
            end = self._plain if what.startswith("plain") else self._secure
            masks[end.fileno()] |= select.POLLIN if what.endswith("in") else select.POLLOUT
        poll = select.poll()
        for descriptor, mask in masks.items():
            if mask:
                poll.register(descriptor, mask)
        poll.poll((BURST_SECONDS / 4 if "limit" in waits else LONGEST_WAIT_SECONDS) * 1000)

    def _end_secure(self, buffer: bytearray) -> None:
        """Send the end, and wait until the other node has read it: closing with bytes unread would discard bytes on their way."""
        deadline = self._clock.elapsed() + LINGER_SECONDS
        is_sent = False
        while not self._cut.is_set() and self._clock.elapsed() < deadline:
            waits: set[str] = set()
            if not is_sent:
                try:
                    self._secure.unwrap()
                    return
                except ssl.SSLWantReadError:
                    is_sent = True
                except ssl.SSLWantWriteError:
                    waits.add("secure-out")
            if is_sent:
                _, ended = self._read_secure(buffer, waits)
                if ended:
                    return
            self._wait(waits)
