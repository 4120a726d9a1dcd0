"""QEMU's counters of a guest's disks, asked for on its second monitor without ever waiting for it.

A question is sent at one read, and its answer is taken at a later one: a QEMU that hangs costs nobody anything. Asking takes
0.15 ms of the guest's own time, so it is done once a second, or at each read while somebody watches. A guest that has broken out
of its machine is QEMU: what it answers has a limit.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec

from weft.contracts.driver.runtime import Counted
from weft.drivers.runtime.qemu.devices.ids import DISK_ID

EVERY_SECONDS = 0.9  # a little less than a second: reads are not that exact
MOST_MISSED = 2  # reads without the answer; one that comes later is of another time than its question
RECONNECT_SECONDS = 5.0
MOST_BYTES = 1 << 18  # of an answer; eighteen disks take a fifth of it
_ASK = b'{"execute":"query-blockstats"}\n'
_BEGIN = b'{"execute":"qmp_capabilities"}\n'
_PERIPHERAL = f"/peripheral/{DISK_ID}"


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Stats(msgspec.Struct):
    rd_bytes: _Count
    wr_bytes: _Count
    rd_operations: _Count
    wr_operations: _Count
    rd_total_time_ns: _Count
    wr_total_time_ns: _Count


class _Device(msgspec.Struct):
    stats: _Stats
    qdev: str = ""


class _Answer(msgspec.Struct):
    """The answer to any command; ``given`` is a list for the one that asks for disks. Events have neither."""

    given: list[_Device] | dict[str, object] | None = msgspec.field(name="return", default=None)
    error: dict[str, object] = {}


_answers = msgspec.json.Decoder(_Answer)


class DiskCounters:
    """Counters (contracts.driver.runtime) of the disks with these serials."""

    def __init__(self, monitor: str, serials: Sequence[str]) -> None:
        self._monitor, self._serials = monitor, frozenset(serials)
        self.names = tuple(f"disk.{serial}.{name}" for serial in serials for name in _NAMES)
        self._socket: socket.socket | None = None
        self._received = b""
        self._tried_at = float("-inf")
        self._asked_at: float | None = None  # of the question without an answer yet
        self._last_at = float("-inf")
        self._missed = 0

    def read(self, at: float, *, often: bool) -> Counted | None:
        """See Counters. A monitor that is busy or talks nonsense is tried again later."""
        if not self._serials:
            return None
        try:
            if self._socket is None:
                self._connect(at)
                return None
            found = self._take() if self._asked_at is not None else None
            if self._asked_at is None and (often or at - self._last_at >= EVERY_SECONDS):
                self._socket.send(_ASK)
                self._asked_at, self._last_at, self._missed = at, at, 0
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
            self.close()
            return None
        return found

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._asked_at, self._received = None, None, b""

    def _connect(self, at: float) -> None:
        if at - self._tried_at < RECONNECT_SECONDS:
            return
        self._tried_at = at
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.connect(self._monitor)
        self._socket.send(_BEGIN)

    def _take(self) -> Counted | None:
        """The newest answer, if it has come. Raises ValueError, MsgspecError for nonsense, OSError at the connection's end."""
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while piece := self._socket.recv(65_536):
                self._received += piece
                if len(self._received) > MOST_BYTES:
                    raise ValueError("too long an answer")
            raise ConnectionResetError
        *lines, self._received = self._received.split(b"\n")
        found = None
        for line in lines:
            answer = _answers.decode(line)
            if answer.error:
                raise ValueError("refused")
            if isinstance(answer.given, list) and self._asked_at is not None:
                if self._missed <= MOST_MISSED:
                    found = Counted(self._asked_at, count_disks(answer.given, self._serials))
                self._asked_at = None
        self._missed += 1
        return found


_NAMES = ("read", "written", "reads", "writes", "read_seconds", "write_seconds")


def count_disks(devices: Sequence[_Device], serials: frozenset[str]) -> Mapping[str, float]:
    """Pure: the counters of the disks with these serials, by name."""
    counted: dict[str, float] = {}
    for device in devices:
        _, found, rest = device.qdev.partition(_PERIPHERAL)
        serial = rest.partition("/")[0]
        if found and serial in serials:
            stats, of = device.stats, f"disk.{serial}."
            counted[of + "read"], counted[of + "written"] = stats.rd_bytes, stats.wr_bytes
            counted[of + "reads"], counted[of + "writes"] = stats.rd_operations, stats.wr_operations
            counted[of + "read_seconds"] = stats.rd_total_time_ns / 1e9
            counted[of + "write_seconds"] = stats.wr_total_time_ns / 1e9
    return counted
