"""This machine's wall clock, with the newest time that was seen here as a floor: a board without a battery begins in 1970 after
each power cut. Reads and writes one small file. The clock that never jumps (``elapsed``) decides everything else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably

FILE = "clock"
SAVE_SECONDS = 300.0
BEHIND_SECONDS = 60.0
_LATEST = 253_402_300_799.0  # the end of the year 9999


class WallClock:
    """``folder`` None: nothing is kept."""

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._path = folder / FILE if folder is not None else None
        self._clock = clock
        self._floor = self._read()
        self._began_at = clock.elapsed()
        self._saved_at = clock.elapsed() - SAVE_SECONDS

    @property
    def behind(self) -> bool:
        """Whether the machine's clock shows a time before one that it has shown already."""
        return self._clock.now() < self._least() - BEHIND_SECONDS

    def now(self) -> float:
        """Unix seconds: the machine's clock, but never before what it has shown, and what has passed since."""
        return max(self._clock.now(), self._least())

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
