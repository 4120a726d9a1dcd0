"""The time of day: the server's, once it has answered; until then this machine's clock, with the newest time that was seen here as
a floor: a board without a battery begins in 1970 after each power cut. Reads and writes one small file. The clock that never jumps
(``elapsed``) decides everything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably

FILE = "clock"
SAVE_SECONDS = 300.0
BEHIND_SECONDS = 60.0
NOTE_SECONDS = 60.0  # between two looks at the server's time
_LATEST = 253_402_300_799.0  # the end of the year 9999


class WallClock:
    """``folder`` None: nothing is kept."""

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._path = folder / FILE if folder is not None else None
        self._clock = clock
        self._floor = self._read()
        self._began_at = clock.elapsed()
        self._is_of_server = False
        self._saved_at = clock.elapsed() - SAVE_SECONDS

    @property
    def behind(self) -> bool:
        """Whether the machine's clock shows a time before one that it has shown already, or before the server's."""
        return self._clock.now() < self._least() - BEHIND_SECONDS

    def now(self) -> float:
        """Unix seconds."""
        return self._least() if self._is_of_server else max(self._clock.now(), self._least())

    def note_server(self, headers: Mapping[str, str]) -> None:
        """The server has answered, with the time in its Date header. Any thread."""
        elapsed = self._clock.elapsed()
        if self._is_of_server and elapsed - self._began_at < NOTE_SECONDS:
            return
        with contextlib.suppress(ValueError):
            seconds = parsedate_to_datetime(headers.get("date", "")).timestamp()
            if 0.0 < seconds <= _LATEST:
                if not self._is_of_server:
                    self._saved_at = elapsed - SAVE_SECONDS  # what was saved may have been wrong
                self._floor, self._began_at, self._is_of_server = seconds, elapsed, True

    @property
    def is_due(self) -> bool:
        """Whether the present time should be saved."""
        return self._path is not None and self._clock.elapsed() - self._saved_at >= SAVE_SECONDS

    def save(self) -> None:
        """Keep the present time, if that is due. Blocks for a moment."""
        if self._path is None or not self.is_due:
            return
        self._saved_at = self._clock.elapsed()
        with contextlib.suppress(OSError):  # a full disk
            write_durably(self._path, f"{self.now():.0f}\n".encode(), 0o644)

    def _least(self) -> float:
        return self._floor + self._clock.elapsed() - self._began_at if self._floor else 0.0

    def _read(self) -> float:
        try:
            seen = float(self._path.read_text()[:32]) if self._path is not None else 0.0
        except (OSError, ValueError):
            return 0.0
        return seen if 0.0 <= seen <= _LATEST else 0.0
