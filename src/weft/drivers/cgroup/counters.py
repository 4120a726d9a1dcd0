"""The kernel's counters of control groups, in the words of both versions."""

from __future__ import annotations

from pathlib import Path

from weft.contracts.driver.runtime import GuestStats
from weft.drivers.cgroup.open_counters import FILES, OpenGroup, count_io
from weft.drivers.cgroup.trees import Trees, read


class GroupCounters:
    """Counters of the groups below ``parent``. ``nested``: what is counted may be counted in groups within, which are gone by
    now."""

    def __init__(self, parent: str, trees: Trees, *, nested: bool = False) -> None:
        self.parent = parent.strip("/")
        self.version = trees.version
        self._trees, self._nested = trees, nested

    def path(self, name: str) -> str:
        """The group's path below each controller's mount."""
        return f"{self.parent}/{name}"

    def out_of_memory_kills(self, name: str) -> int:
        """How often the kernel has killed in this group because its memory limit was reached."""
        found = count_oom_kills(self._read(name, "memory.events" if self.version == 2 else "memory.oom_control"))
        if (
            found == 0 and self._nested and self.version == 1
        ):  # counted within, which is gone by now: was the limit met?
            limit = self._read(name, "memory.limit_in_bytes").strip()
            return int(limit.isdigit() and self.most_memory(name) >= int(limit))
        return found

    def most_memory(self, name: str) -> int:
        """Bytes; 0 where the kernel doesn't count it."""
        return int(self._read(name, "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes") or "0")

    def limits_swap(self) -> bool:
        """Whether the kernel limits memory and swap together, or (version 2) each by itself."""
        if self.version == 2:
            return True
        point = self._trees.points.get("memory")
        return point is not None and (point / "memory.memsw.limit_in_bytes").exists()

    def stats(self, name: str, *, disks: bool) -> GuestStats:
        """Zeros for what the node's trees don't count."""
        if self.version == 2:
            cpu = dict(line.split(" ", 1) for line in self._read(name, "cpu.stat").splitlines())
            seconds = int(cpu.get("usage_usec", "0")) / 1e6
            memory, file = self._read(name, "memory.current"), "io.stat"
        else:
            seconds = int(self._read(name, "cpuacct.usage") or "0") / 1e9
            memory, file = self._read(name, "memory.usage_in_bytes"), "blkio.throttle.io_service_bytes"
        done, written = count_io(self._read(name, file), self.version) if disks else (0, 0)
        return GuestStats(seconds, int(memory or "0"), done, written)

    def open(self, name: str) -> OpenGroup:
        """Counters of the group, kept open. Raises OSError where it isn't there."""
        return OpenGroup({what: self._file(name, file) for what, file in FILES[self.version].items()}, self.version)

    def _file(self, name: str, file: str) -> Path | None:
        controller, _, _ = file.partition(".")
        point = self._trees.unified if self.version == 2 else self._trees.points.get(controller)
        return point / self.parent / name / file if point is not None else None

    def _read(self, name: str, file: str) -> str:
        path = self._file(name, file)
        return read(path) if path is not None else ""


def count_oom_kills(events: str) -> int:
    """Pure. Out of memory.events (version 2) or memory.oom_control."""
    counts = dict(line.split(" ", 1) for line in events.splitlines() if " " in line)
    return int(counts.get("oom_kill", "0"))
