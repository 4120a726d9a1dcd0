"""Guests' console output, as this node keeps it: how much, and by when."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from weft.contracts.driver.runtime import Printed, PrintedBy
from weft.drivers.runtime.qemu.console.log import add_printed, read_start
from weft.drivers.runtime.qemu.console.timestamps import add_times, note_time, read_times
from weft.drivers.runtime.qemu.translate import GuestPaths


class PrintedHere:
    """See contracts.driver.runtime.PrintedBefore."""

    def __init__(self, paths: Callable[[str], GuestPaths]) -> None:
        self._paths = paths
        self._noted: dict[str, tuple[int, int]] = {}  # each log's bytes and mtime when it was last read

    def start(self, guest_id: str) -> int:
        return read_start(self._paths(guest_id))

    def times(self, guest_id: str) -> list[PrintedBy]:
        return read_times(self._paths(guest_id).console_log)

    def add(self, guest_id: str, printed: Printed) -> None:
        paths = self._paths(guest_id)
        add_printed(paths, printed)
        add_times(paths.console_log, printed.times)

    def note(self, guest_id: str, now: float) -> None:
        """Record that everything in its log by ``now`` was printed, unless that is recorded already. Raises OSError."""
        paths = self._paths(guest_id)
        found = os.stat(paths.console_log)
        standing = (found.st_size, found.st_mtime_ns)
        if self._noted.get(guest_id) != standing:
            note_time(paths.console_log, read_start(paths) + found.st_size, now)
            self._noted[guest_id] = standing

    def forget_all_but(self, guest_ids: Collection[str]) -> None:
        self._noted = {id_: standing for id_, standing in self._noted.items() if id_ in guest_ids}
