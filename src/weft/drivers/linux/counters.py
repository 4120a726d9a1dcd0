"""The kernel's counters of a process, in files that stay open: reading one takes a quarter of what opening it each time would, and
the file of a process that has ended answers with an error, never with another's counts."""

from __future__ import annotations

import contextlib
import os
import time

from weft.contracts.driver.runtime import Counted
from weft.drivers.linux.processes import PAGE_BYTES, ProcessId, is_alive

EVERY_SECONDS = 0.9  # a little less than a second: reads are not that exact
THREADS_SECONDS = 10.0  # they come and go rarely
_FILE_BYTES = 512


class OpenFile:
    """A file of the kernel, read from its beginning each time."""

    def __init__(self, path: str, size: int = _FILE_BYTES) -> None:
        self._descriptor, self._size = os.open(path, os.O_RDONLY | os.O_CLOEXEC), size

    def read(self) -> bytes:
        """Read at most ``size`` bytes."""
        return os.pread(self._descriptor, self._size, 0)

    def close(self) -> None:
        os.close(self._descriptor)


class ProcessCounters:
    """Counters (contracts.driver.runtime) of a machine's process. Raises OSError if it has ended."""

    names: tuple[str, ...] = ("cpu", "memory.resident", "memory.shared")

    def __init__(self, process: ProcessId) -> None:
        self._memory = OpenFile(f"/proc/{process.pid}/statm")
        # The clock of a process's CPU time: nanoseconds, where /proc/PID/stat counts hundredths of a second.
        self._clock = (~process.pid << 3) | 2
        if not is_alive(process):
            self.close()
            raise ProcessLookupError(process.pid)

    def read(self, at: float, *, often: bool) -> Counted:
        # First: it fails for a process that has ended, even if another has its number now.
        memory = self._memory.read().split()
        values = {
            "cpu": time.clock_gettime_ns(self._clock) / 1e9,
            "memory.resident": int(memory[1]) * PAGE_BYTES,
            "memory.shared": int(memory[2]) * PAGE_BYTES,
        }
        return Counted(at, values)

    def close(self) -> None:
        self._memory.close()


class WaitCounters:
    """Counters (contracts.driver.runtime) of how long the threads of a machine's process waited for a CPU: all of them, since
    processors are not named by default, and what else QEMU does is for the guest, too. Read once a second, or while somebody
    watches."""

    names: tuple[str, ...] = ("steal",)

    def __init__(self, process: ProcessId) -> None:
        self._folder = f"/proc/{process.pid}/task"
        self._threads: dict[str, OpenFile] = {}
        self._waits: dict[str, int] = {}  # nanoseconds that a thread has waited
        self._waited = 0
        self._read_at = self._found_at = float("-inf")

    def read(self, at: float, *, often: bool) -> Counted | None:
        if at - self._read_at < EVERY_SECONDS and not often:
            return None
        if at - self._found_at >= THREADS_SECONDS:
            self._find_threads()
            self._found_at = at
        self._read_at = at
        self._add_waits()
        return Counted(at, {"steal": self._waited / 1e9})

    def close(self) -> None:
        for file in self._threads.values():
            file.close()
        self._threads.clear()

    def _add_waits(self) -> None:
        """Each thread's own, for the sum of all would fall when one ends."""
        for name, file in list(self._threads.items()):
            try:
                waited = int(file.read().split()[1])
            except OSError:
                self._threads.pop(name).close()
                self._waits.pop(name, None)
                continue
            self._waited += waited - self._waits.get(name, waited)
            self._waits[name] = waited

    def _find_threads(self) -> None:
        """Raises OSError when the process has ended."""
        for name in os.listdir(self._folder):
            if name not in self._threads:
                with contextlib.suppress(OSError):
                    self._threads[name] = OpenFile(f"{self._folder}/{name}/schedstat")
