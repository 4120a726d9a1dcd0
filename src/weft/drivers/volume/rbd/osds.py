"""The OSDs that run on this node's machine: what they hold, and how long their operations take, as they say themselves.

The monitors know of latency only what is seconds old, and much of the time nothing; each OSD counts operations and their time at
its admin socket. Two samples give what happened between them.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.driver.volume import OsdFacts
from weft.drivers.linux.ceph.admin_socket import ask_daemon

REFRESH_SECONDS = 30.0
SOCKET = "/var/run/ceph/$cluster-$name.asok"
_DIGITS = 2
Sums = dict[str, tuple[int, float]]  # of each latency: operations, seconds

LATENCIES = {
    "write": (
        "osd",
        ("op_w_latency", "op_rw_latency"),
    ),  # librbd's writes also read: whether the image's lock is theirs
    "read": ("osd", ("op_r_latency",)),
    "replica": ("osd", ("subop_w_latency",)),
    "commit": ("bluestore", ("kv_commit_lat",)),
}


class LocalOsds:
    """``socket``: ceph.conf's admin_socket."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inspected_at: float | None = None
        self._sums: dict[str, Sums] = {}
        self._facts: list[OsdFacts] = []

    def inspect(self, socket: str = SOCKET) -> list[OsdFacts]:
        """Blocks. What an OSD did since the time before; for a while the same answer."""
        now = self._clock.elapsed()
        if self._inspected_at is None or now - self._inspected_at >= REFRESH_SECONDS:
            self._inspected_at = now
            found = {find_name(path): path for path in glob.glob(_pattern(socket))}
            self._facts = [self._ask(name, found[name]) for name in sorted(found, key=_number) if name]
        return self._facts

    def _ask(self, name: str, path: str) -> OsdFacts:
        try:
            dump = ask_daemon(path, "perf dump")
            sums = read_sums(dump)
            held = dump["osd"]
            total, used = int(held["stat_bytes"]), int(held["stat_bytes_used"])
        except (OSError, ValueError, KeyError, TypeError) as problem:
            self._sums.pop(name, None)
            return OsdFacts(name, problem=f"it doesn't answer: {problem}")
        before, self._sums[name] = self._sums.get(name), sums
        grain = max(1, total // 100)
        return OsdFacts(name, total, used // grain * grain, mean_latencies(before, sums) if before else {})


def read_sums(dump: Mapping[str, Any]) -> Sums:
    """Pure. An OSD on another store than bluestore has no commits."""
    sums = {}
    for what, (part, counters) in LATENCIES.items():
        if found := [dump[part][counter] for counter in counters if counter in dump.get(part, {})]:
            sums[what] = (sum(int(one["avgcount"]) for one in found), sum(float(one["sum"]) for one in found))
    return sums


def mean_latencies(before: Sums, now: Sums) -> dict[str, float]:
    """Pure. Milliseconds of each kind of operation that there was; an OSD that started anew counts from zero."""
    means = {}
    for what, (count, seconds) in now.items():
        former_count, former_seconds = before.get(what, (0, 0.0))
        if count < former_count:
            former_count, former_seconds = 0, 0.0
        if count > former_count:
            milliseconds = (seconds - former_seconds) / (count - former_count) * 1000
            means[what] = float(f"{milliseconds:.{_DIGITS}g}")
    return means


def find_name(path: str) -> str:
    match = re.search(r"osd\.\d+", path.rpartition("/")[2])
    return match[0] if match else ""


def _pattern(socket: str) -> str:
    plain = socket.replace("$cluster", "ceph").replace("$name", "\0").replace("$type.$id", "\0")
    return glob.escape(plain).replace("\0", "osd.*")


def _number(name: str) -> int:
    return int(name.partition(".")[2] or -1)
