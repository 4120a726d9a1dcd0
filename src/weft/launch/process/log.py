"""A busy process writes its log to stderr in few writes: a line for each request costs little, and nothing while it waits."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence

from weft.contracts.clock import Clock

GATHER_SECONDS = 0.1
_MOST_LINES = 1000


class GatheringHandler(logging.Handler):
    """Lines that come within a moment are written together; a warning, or worse, is written at once, with all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.keep: Callable[[Sequence[tuple[float, str]]], None] | None = None  # gets the lines, too, with their times
        self._kept: list[tuple[float, str]] = []
        self._times = _Formatter("%(asctime)s %(name)s %(levelname)s %(message)s")
        self.setFormatter(self._times)
        self._lines: list[str] = []

    def write_line(self, source: str, at: float, line: str) -> None:
        """A line of level INFO, made at ``at`` (unix seconds), without the record that ``logging`` would make of it: each request
        has one, and the record takes longer than the line."""
        self._lines.append(f"{self._times.show(at)} {source} INFO {line}")
        if self.keep is not None:
            self._kept.append((at, f"INFO {line}"))
        if len(self._lines) >= _MOST_LINES:
            self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._lines.append(text)
        if self.keep is not None:
            self._kept.append((record.created, f"{record.levelname} {text.split(f' {record.levelname} ', 1)[-1]}"))
        if record.levelno >= logging.WARNING or len(self._lines) >= _MOST_LINES:
            self.flush()

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            kept, self._kept = self._kept, []
            if kept and self.keep is not None:
                self.keep(kept)
            if lines:
                sys.stderr.write("\n".join([*lines, ""]))
                sys.stderr.flush()
        finally:
            self.release()

    async def keep_flushing(self, clock: Clock) -> None:
        """Write what has gathered, again and again, until cancelled."""
        while True:
            await clock.sleep(GATHER_SECONDS)
            self.flush()


class _Formatter(logging.Formatter):
    """A formatter that works out the time of day once a second."""

    _second, _text = 0, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return self.show(record.created)

    def show(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text},{int((at - second) * 1000):03d}"


def gather_logs() -> GatheringHandler:
    """Gather logs from now on, for the whole process; and nothing is looked up for a record that no line of ours shows (of the
    manual of ``logging``: "Optimization")."""
    handler = GatheringHandler()
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    return handler
