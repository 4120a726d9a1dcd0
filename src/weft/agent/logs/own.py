"""The agent's own log, on its way to the node's store."""

from __future__ import annotations

import logging
from collections import deque

from weft.contracts.clock import Clock
from weft.telemetry.logs.clean import clean_block

MOST_WAITING = 10_000  # lines; of more the oldest are left out
FORMAT = "%(levelname)s %(message)s"


class OwnLog(logging.Handler):
    """Listens to all of weft's loggers from ``begin`` until it is closed. What it takes is in the store a moment later, if the
    agent lives that long; the agent's standard error has it immediately."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self._clock = clock
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=MOST_WAITING)
        self.setFormatter(logging.Formatter(FORMAT))

    def begin(self) -> None:
        logging.getLogger("weft").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        at = int(self._clock.now() * 1e6)
        self._waiting.extend(
            (at, clean_block(line.encode("utf-8", "backslashreplace") + b"\n"))
            for line in self.format(record).split("\n")
        )

    @property
    def has_lines(self) -> bool:
        return bool(self._waiting)

    def take(self) -> list[tuple[int, bytes]]:
        """Times (unix microseconds) and lines since the last call."""
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        return taken

    def close(self) -> None:
        logging.getLogger("weft").removeHandler(self)
        super().close()
