"""What a guest has printed on its console, counted from its first boot on whichever node: read from the runtime's log, and
handed from node to node when the guest migrates.

The log keeps an end of it: what came before is lost. Reads files, writes through the runtime.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from weft.contracts.driver.runtime import CountsPrinted, GuestPlan, HasConsole, Printed, RuntimeDriver

log = logging.getLogger("weft.agent")
CHUNK_BYTES = 32 * 1024
CARRIED_BYTES = 128 * 1024  # goes to another node before the guest does
CARRIED_LATE_BYTES = 64 * 1024  # goes while it stands still
CARRIED_TIMES = 256


class PrintedLog:
    """One guest's. Positions are bytes printed before."""

    def __init__(self, runtime: HasConsole, guest_id: str) -> None:
        self._guest_id = guest_id
        self._before = runtime.printed if isinstance(runtime, CountsPrinted) else None
        self.path = Path(runtime.console_log(guest_id))

    @property
    def start(self) -> int:
        """Where what is kept begins."""
        return self._before.start(self._guest_id) if self._before is not None else 0

    @property
    def end(self) -> int | None:
        """Where it ends so far; None: there is no log, or none any more."""
        try:
            return self.start + os.stat(self.path).st_size
        except FileNotFoundError:
            return None

    def read(self, position: int, size: int = CHUNK_BYTES) -> Printed:
        """At most ``size`` bytes from ``position`` on, or from where they begin if those are not kept; empty beyond the end."""
        try:
            while True:
                start = self.start
                with open(self.path, "rb") as file:
                    file.seek(max(0, position - start))
                    data = file.read(size)
                if self.start == start:  # else it was shortened meanwhile
                    return Printed(max(position, start), data)
        except FileNotFoundError:
            return Printed(position)

    def find_tail(self, lines: int) -> int:
        """Where the last ``lines`` lines begin; -1: all that is kept."""
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
                at -= 1  # the last line's own end
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                missing -= 1
                if missing == 0:
                    return first + at + 1
            position = first
        return position

    def find_since(self, oldest: float) -> int:
        """Where the line begins that was being printed at ``oldest`` (seconds since 1970): what it printed later is all behind
        that, and some that it printed a little before."""
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
        """Where at most the last ``size`` bytes begin, at the beginning of a line."""
        start = self.start
        end = self.end or start
        if end - start <= size:
            return start
        line = self.read(end - size, size).data.find(b"\n")
        return end if line < 0 else end - size + line + 1


def read_console(runtime: RuntimeDriver[GuestPlan], guest_id: str, after: int | None = None) -> Printed | None:
    """What another node needs of it before the guest comes, or (``after``) needs since then; None: nothing."""
    if not isinstance(runtime, CountsPrinted):
        return None
    printed = PrintedLog(runtime, guest_id)
    most = CARRIED_BYTES if after is None else CARRIED_LATE_BYTES
    try:
        end = printed.end
        if end is None or end == after:
            return None
        told = printed.read(max(after or 0, end - most), most)
        times = [one for one in runtime.printed.times(guest_id) if told.start <= one.printed][-CARRIED_TIMES:]
        return Printed(told.start, told.data, tuple(times))
    except OSError as problem:
        log.warning("guest %s: its console log doesn't migrate with it: %s", guest_id, problem)
        return None


def take_printed(runtime: RuntimeDriver[GuestPlan], guest_id: str, printed: Printed | None) -> None:
    """Keep what it printed elsewhere: a guest whose log can't be had runs nonetheless."""
    if printed is not None and isinstance(runtime, CountsPrinted):
        try:
            runtime.printed.add(guest_id, printed)
        except OSError as problem:
            log.warning("guest %s: its console log from before the migration is lost: %s", guest_id, problem)
