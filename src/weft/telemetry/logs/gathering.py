"""A store of lines that gathers what this machine's processes write into spools, for several threads: opened at its first use."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.contracts.clock import Clock
from weft.telemetry.logs.journal import Cursor
from weft.telemetry.logs.store import LogStore
from weft.telemetry.spool import forget_read, read_spool

_PIECE_BYTES = 1 << 20


class GatheringStore(ABC):
    """Store in ``folder``; the spools, a folder each, are in ``spools``. Thread-safe; nothing here may run in an event loop's
    thread."""

    def __init__(self, folder: Path, spools: Path, clock: Clock, most_bytes: int, most_age: float) -> None:
        self.store = LogStore(folder, clock, most_bytes, most_age)
        self._spools, self._clock = spools, clock
        self._lock = threading.Lock()
        self._is_open = False

    @contextmanager
    def opened(self) -> Iterator[LogStore]:
        """The store, for this thread alone. Raises OSError."""
        with self._lock:
            if not self._is_open:
                self.store.open()
                self._is_open = True
            yield self.store

    def gather(self) -> None:
        """Take in what the processes have written since. Raises OSError."""
        with self.opened() as store:
            for source, folder in self._list_spools():
                while self._gather_piece(store, source, folder):
                    pass

    def keep(self) -> None:
        """Drop what is too old or too much. Raises OSError."""
        with self.opened() as store:
            store.keep()

    def close(self) -> None:
        with self._lock:
            self.store.close()
            self._is_open = False

    @abstractmethod
    def _list_spools(self) -> Iterable[tuple[str, Path]]:
        """Each folder, and the source under which the store notes how far it has been read."""

    @abstractmethod
    def _take(self, store: LogStore, source: str, lines: list[bytes], read: Cursor) -> None:
        """Put ``lines`` of a spool into the store, of which the last may be torn, and that it was read up to ``read``."""

    def _gather_piece(self, store: LogStore, source: str, folder: Path) -> bool:
        """Whether there may be more."""
        cursor = store.cursor(source)
        before = cursor.position if cursor is not None else ""
        data, after = read_spool(folder, before, _PIECE_BYTES)
        if after == before:
            return False
        self._take(store, source, data.split(b"\n"), Cursor(after))
        forget_read(folder, after)
        return bool(data)
