"""A guest's console log, with positions counted from its first boot on any node: read from the runtime's file, and sent to the
target when the guest migrates.

The log keeps only the end of the output. Reads files, writes through the runtime.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from weft.contracts.driver.runtime import CountsPrinted, GuestPlan, HasConsole, Printed, RuntimeDriver

log = logging.getLogger("weft.agent")
CHUNK_BYTES = 32 * 1024
CARRIED_BYTES = 128 * 1024  # goes to another node before the guest does
CARRIED_LATE_BYTES = 64 * 1024  # goes while it is paused
CARRIED_TIMES = 256


class PrintedLog:
    """One guest's log. Positions are bytes printed before."""

    def __init__(self, runtime: HasConsole, guest_id: str) -> None:
        self._guest_id = guest_id
        self._before = runtime.printed if isinstance(runtime, CountsPrinted) else None
        self.path = Path(runtime.console_log(guest_id))

    @property
    def start(self) -> int:
        """The position where the kept output begins."""
        return self._before.start(self._guest_id) if self._before is not None else 0

    @property
    def end(self) -> int | None:
        """The position where the log ends now; None without a log."""
        try:
            return self.start + os.stat(self.path).st_size
        except FileNotFoundError:
            return None

    def read(self, position: int, size: int = CHUNK_BYTES) -> Printed:
        """Read at most ``size`` bytes from ``position``, or from ``start`` if that is later; empty beyond the end."""
        try:
            while True:
                start = self.start
                with open(self.path, "rb") as file:
                    file.seek(max(0, position - start))
                    data = file.read(size)
                if self.start == start:  # else the log was shortened meanwhile
                    return Printed(max(position, start), data)
        except FileNotFoundError:
            return Printed(position)

    def find_tail(self, lines: int) -> int:
        """Find the position where the last ``lines`` lines begin; -1: all kept lines."""
        start = self.start
        if lines < 0:
            return start
        position = end = self.end or start
        missing = lines
        while lines > 0 and position > start:
            first = max(start, position - CHUNK_BYTES)
            block = self.read(first, position - first).data
            at = len(block)
            if position == end and block.endswith(b"\n"):
                at -= 1  # skip the last line's own end
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                missing -= 1
                if missing == 0:
                    return first + at + 1
            position = first
        return position

    def find_since(self, oldest: float) -> int:
        """Find the position where the line begins that was being printed at ``oldest`` (unix seconds): all later output is after
        that, and a little of the output before."""
        start = self.start
        end = self.end or start
        times = self._before.times(self._guest_id) if self._before is not None else []
        position = max((one.printed for one in times if one.at <= oldest), default=start)
        if not start < position < end:
            return min(max(position, start), end)
        first = max(start, position - CHUNK_BYTES)
        line = self.read(first, position - first).data.rfind(b"\n")
        return position if line < 0 else first + line + 1

    def find_recent(self, size: int) -> int:
        """The beginning of a line from which at most ``size`` bytes follow."""
        start = self.start
        end = self.end or start
        if end - start <= size:
            return start
        line = self.read(end - size, size).data.find(b"\n")
        return end if line < 0 else end - size + line + 1


def read_console(runtime: RuntimeDriver[GuestPlan], guest_id: str, after: int | None = None) -> Printed | None:
    """The part of the log that the target of a migration needs, all of it or since ``after``; None: nothing."""
    if not isinstance(runtime, CountsPrinted):
        return None
    printed = PrintedLog(runtime, guest_id)
    most = CARRIED_BYTES if after is None else CARRIED_LATE_BYTES
    try:
        end = printed.end
        if end is None or end == after:
            return None
        recent = printed.read(max(after or 0, end - most), most)
        times = [one for one in runtime.printed.times(guest_id) if recent.start <= one.printed][-CARRIED_TIMES:]
        return Printed(recent.start, recent.data, tuple(times))
    except OSError as problem:
        log.warning("guest %s: its console log doesn't migrate with it: %s", guest_id, problem)
        return None


def take_printed(runtime: RuntimeDriver[GuestPlan], guest_id: str, printed: Printed | None) -> None:
    """Keep the log from the source; a guest whose log is lost runs nonetheless."""
    if printed is not None and isinstance(runtime, CountsPrinted):
        try:
            runtime.printed.add(guest_id, printed)
        except OSError as problem:
            log.warning("guest %s: its console log from before the migration is lost: %s", guest_id, problem)
