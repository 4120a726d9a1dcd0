"""Sends the lines of a store to a collector, as OTLP over HTTP in JSON (opentelemetry-proto 1.x: ``resourceLogs`` → ``scopeLogs`` →
``logRecords``).

The store itself is the spool: a thread reads on in each source from where the collector has taken its lines, which a file keeps.
So a collector that is away, or an agent that is killed, costs no line that the store still has; lines may come twice, with the
same number.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.telemetry.collector import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, SECONDS, Collector
from weft.telemetry.logs.query import StoredLine, read_on
from weft.telemetry.logs.store import LogStore

PATH = "/v1/logs"
MOST_LINES, MOST_BYTES = 1_000, 1 << 20  # in one request
STEP_SECONDS = 0.5
SAVE_SECONDS = 1.0
_log = logging.getLogger("weft.logs")


def to_otlp(lines: Iterable[tuple[str, StoredLine]], place: str) -> dict[str, Any]:
    """One resource for each source; ``place``: node/NAME or server. Pure."""
    by_source: dict[str, list[dict[str, Any]]] = {}
    for what, line in lines:
        by_source.setdefault(what, []).append(
            {
                "timeUnixNano": str(line.at * 1000),
                "body": {"stringValue": line.text.decode("utf-8", "backslashreplace")},
                "attributes": [{"key": "weft.line", "value": {"intValue": str(line.number)}}],
            }
        )
    return {
        "resourceLogs": [
            {
                "resource": {
                    "attributes": [
                        {"key": key, "value": {"stringValue": value}}
                        for key, value in (("service.name", what), ("weft.place", place))
                    ]
                },
                "scopeLogs": [{"scope": {"name": "weft"}, "logRecords": records}],
            }
            for what, records in by_source.items()
        ]
    }


class LogExporter:
    """Sends what is new in ``store`` to ``url`` until it is closed; ``kept`` is the file with how far. ``unsent``: lines that went
    before they could be sent, or that the collector refused."""

    def __init__(self, store: LogStore, url: str, kept: Path, place: str, clock: Clock) -> None:
        self._store, self._kept, self._place, self._clock = store, kept, place, clock
        self._collector = Collector(url)
        self._closed = threading.Event()
        self._sent_to: dict[str, int] | None = None  # by uid: the number of the line that comes next
        self._saved_at = 0.0
        self._turn = 0
        self.sent = self.unsent = 0
        self._thread = threading.Thread(target=self._run, name="otlp-logs", daemon=True)

    def begin(self) -> None:
        """``store`` is open. Of one that was never sent from, lines are sent from now on."""
        try:
            self._sent_to = msgspec.json.decode(self._kept.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            self._sent_to = {uid: self._store.next_number(uid) for uid in self._store.sources()}
            self._save()
        self._thread.start()

    def close(self) -> None:
        """Close the export. What wasn't sent is sent by the next one."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(2 * SECONDS)
            self._save()

    def _run(self) -> None:
        pause, is_away = FIRST_PAUSE_SECONDS, False
        while not self._closed.is_set():
            try:
                batch, after = self._collect()
            except OSError as problem:
                _log.warning("lines can't be read for the collector of logs: %s; tried again", problem)
                self._closed.wait(LONGEST_PAUSE_SECONDS)
                continue
            if not batch:
                self._sent_to = after
                self._closed.wait(STEP_SECONDS)
                continue
            problem_, refused = self._collector.post(to_otlp(batch, self._place))
            if problem_:
                if not is_away:
                    _log.warning("the collector of logs takes no lines: %s; tried again", problem_)
                is_away = True
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                continue
            if refused:
                self.unsent += len(batch)
                _log.warning("the collector of logs refused %d lines", len(batch))
            else:
                self.sent += len(batch)
            if is_away:
                _log.warning("the collector of logs is back; %d lines were not sent", self.unsent)
            pause, is_away, self._sent_to = FIRST_PAUSE_SECONDS, False, after
            if self._clock.elapsed() - self._saved_at >= SAVE_SECONDS:
                self._save()

    def _collect(self) -> tuple[list[tuple[str, StoredLine]], dict[str, int]]:
        """Lines to send, and how far all sources are sent with them. Raises OSError."""
        assert self._sent_to is not None
        sources = self._store.sources()
        after = {uid: number for uid, number in self._sent_to.items() if uid in sources}
        found: list[tuple[str, StoredLine]] = []
        size = 0
        # Each time another one comes first, and none has more than a fourth: one that prints much keeps no other waiting.
        self._turn = (self._turn + 1) % max(1, len(sources))
        ordered = list(sources.items())
        for uid, what in ordered[self._turn :] + ordered[: self._turn]:
            end, at = self._store.next_number(uid), after.get(uid, 0)
            if at >= end:
                after[uid] = end
                continue
            if len(found) >= MOST_LINES or size >= MOST_BYTES:
                continue
            lines = read_on(self._store, uid, at, min(MOST_LINES - len(found), MOST_LINES // 4))
            if at and lines and lines[0].number > at:
                self.unsent += lines[0].number - at
            found += [(what, line) for line in lines]
            size += sum(len(line.text) for line in lines)
            after[uid] = lines[-1].number + 1 if lines else end
        return found, after

    def _save(self) -> None:
        self._saved_at = self._clock.elapsed()
        fresh = self._kept.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(self._sent_to or {}))
            fresh.replace(self._kept)
        except OSError as problem:
            _log.warning("it can't be kept how far logs were sent: %s", problem)
