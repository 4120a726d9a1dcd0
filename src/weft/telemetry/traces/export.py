"""Sends spans to a collector as OTLP over HTTP, in JSON. A thread sends; ``put`` only queues. A collector that is slow or gone
misses spans, and nobody waits for it: the server's own store has all."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from weft.contracts.trace.span import Span
from weft.telemetry.collector import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SECONDS, Collector
from weft.telemetry.traces.otlp import to_otlp

MOST_WAITING = 20_000
MOST_SENT = 500  # in one request
_log = logging.getLogger("weft.traces")


class SpanExporter:
    """Sends to ``url`` until it is closed. ``unsent``: spans that were dropped."""

    def __init__(self, url: str) -> None:
        self._collector = Collector(url)
        self._waiting: deque[Span] = deque()
        self._woken, self._closed = threading.Event(), threading.Event()
        self.unsent = self.sent = 0
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def put(self, spans: Sequence[Span]) -> None:
        """Send these that are over, some time; never waits. What finds no place is not sent."""
        for one in spans:
            if one.end:
                if len(self._waiting) >= MOST_WAITING:
                    self.unsent += 1
                else:
                    self._waiting.append(one)
        self._woken.set()

    def close(self) -> None:
        """Close the export. What still waits isn't sent."""
        self._closed.set()
        self._woken.set()
        self._thread.join(2 * SECONDS)

    def _run(self) -> None:
        pause, is_away = FIRST_PAUSE_SECONDS, False
        while not self._closed.is_set():
            if not self._waiting:
                self._woken.wait()
                self._woken.clear()
                continue
            batch = [self._waiting.popleft() for _ in range(min(MOST_SENT, len(self._waiting)))]
            problem = self._try_send(batch)
            if not problem:
                if is_away:
                    _log.warning("the collector of traces is back; %d spans were not sent", self.unsent)
                self.sent += len(batch)
                pause, is_away = FIRST_PAUSE_SECONDS, False
                continue
            if len(self._waiting) + len(batch) > MOST_WAITING:
                self.unsent += len(batch)
            else:
                self._waiting.extendleft(reversed(batch))
            if not is_away:
                _log.warning("the collector of traces takes no spans: %s; tried again", problem)
            is_away = True
            self._closed.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _try_send(self, batch: Sequence[Span]) -> str:
        """Why it must be sent again; "": it was sent, or the collector will never take it."""
        problem, refused = self._collector.post(to_otlp(batch))
        if refused:
            self.unsent += len(batch)
            _log.warning("the collector of traces refused %d spans", len(batch))
        return problem
