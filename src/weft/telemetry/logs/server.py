"""Log of the server's own processes: each writes into a spool of its own, and one of them gathers all into a store."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.journal import Event, Journal
from weft.telemetry.logs.clean import clean_block
from weft.telemetry.logs.gathering import GatheringStore
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.match import make_matcher
from weft.telemetry.logs.query import Range, read_last
from weft.telemetry.logs.store import MOST_AGE_SECONDS, LogStore
from weft.telemetry.spool import Spool

PROCESSES = ("api", "controllers", "gateway", "supervisor")
DEPARTED = "departed"  # beside them: workloads that were deleted
MOST_BYTES = 256 << 20
FORMAT = "%(levelname)s %(message)s"


class Logged(msgspec.Struct, frozen=True, array_like=True):
    """A line; ``at``: unix microseconds."""

    at: int
    text: str


_decoder = msgspec.json.Decoder(Logged)


class KeptLog(logging.Handler):
    """Takes what a process logs, into the spool in ``folder``. Never raises, and never waits but for a write to a file."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self._spool, self._clock = Spool(folder), clock
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        self.put([(self._clock.now(), self.format(record))])

    def put(self, lines: Iterable[tuple[float, str]]) -> None:
        """Texts, of one line or several, with their times (unix seconds)."""
        made = [
            Logged(int(at * 1e6), line.encode("utf-8", "replace").decode())
            for at, text in lines
            for line in text.split("\n")
        ]
        self._spool.put(*made)

    def close(self) -> None:
        self._spool.close()
        super().close()


class Departed(NamedTuple):
    """A workload that was deleted ``at`` (unix seconds), and the node that has what it printed."""

    at: float
    what: str
    uid: str
    node_uid: str


class DepartureJournal:
    """``journal``, which also notes in ``kept`` what is deleted, so that its log is found."""

    def __init__(self, journal: Journal, kept: KeptLog, clock: Clock) -> None:
        self._journal, self._kept, self._clock = journal, kept, clock

    def append(self, event: Event) -> None:
        if event.node_uid:
            of = event.object
            line = [f"{of.kind}/{of.project or '-'}/{of.name}", of.uid, event.node_uid]
            self._kept.put([(self._clock.now(), msgspec.json.encode(line).decode())])
        self._journal.append(event)


class ServerLog(GatheringStore):
    """Log of the server's processes, and of what was deleted."""

    def __init__(
        self,
        folder: Path,
        spools: Path,
        clock: Clock,
        most_bytes: int = MOST_BYTES,
        most_age: float = MOST_AGE_SECONDS,
    ) -> None:
        super().__init__(folder, spools, clock, most_bytes, most_age)

    def find_departed(self, what: str) -> Departed | None:
        """The newest workload that was called ``what`` (KIND/PROJECT/NAME) and is deleted. Raises OSError."""
        self.gather()
        begins = msgspec.json.encode([what]).decode()[:-1] + ","
        found = read_last(self.store, Range(name_source(DEPARTED)), make_matcher(begins, "", self._clock), 1)
        return Departed(found[0].at / 1e6, *msgspec.json.decode(found[0].text, type=list[str])) if found else None

    def _list_spools(self) -> Iterable[tuple[str, Path]]:
        return [(name_source(process), self._spools / process) for process in (*PROCESSES, DEPARTED)]

    def _take(self, store: LogStore, source: str, lines: list[bytes], read: Cursor) -> None:
        times, texts = array("q"), []
        for line in lines:
            try:
                logged = _decoder.decode(line)
            except msgspec.MsgspecError:  # torn, or the end
                continue
            texts.append(clean_block(logged.text.replace("\n", " ").encode() + b"\n"))
            times.append(logged.at)
        store.append(source, times, b"".join(texts), read, source)


def name_source(process: str, server: str = "") -> str:
    """Name of the source as people write it; ``server``: whose it is, of several."""
    return f"server/{server}/{process}" if server else f"server/{process}"
