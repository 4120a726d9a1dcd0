"""Batches of many sources, kept by one commit: what comes while a commit waits for the disk is in the next one, together.

Each source has its turn: no commit has two batches of one source, and none has many more events than MOST_EVENTS. So a source that
sends without end doesn't delay others by more than a commit. A thread commits; it ends when nothing has come for a while.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from weft.contracts.journal import Event

MOST_EVENTS = 4_000  # of a commit, where the first batch alone doesn't have more
MOST_WAITING = 4  # batches of a source: an honest one waits for its answer
IDLE_SECONDS = 5.0
_log = logging.getLogger("weft.journal")


class EventBatch(NamedTuple):
    """Numbered events of ``source``'s ``outbox``, each with its time."""

    source: str
    outbox: str
    events: Sequence[tuple[int, tuple[float, Event]]]


class GroupedTaking:
    """``keep`` keeps batches in one commit, and says of each the greatest number that is kept for good, or 0; it may wait."""

    def __init__(self, keep: Callable[[Sequence[EventBatch]], Sequence[int]]) -> None:
        self._keep = keep
        self._waiting: dict[str, deque[tuple[EventBatch, Future[int]]]] = {}  # by source, in the order of their turns
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, source: str, outbox: str, events: Sequence[tuple[int, tuple[float, Event]]]) -> Future[int]:
        """Number of events kept of the batch, once that is known: 0 if too many of this source wait."""
        answer: Future[int] = Future()
        with self._wake:
            own = self._waiting.get(source)
            if self._closed or (own is not None and len(own) >= MOST_WAITING):
                answer.set_result(0)
                return answer
            self._waiting.setdefault(source, deque()).append((EventBatch(source, outbox, events), answer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="journal-take", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        return answer

    def close(self) -> None:
        """Keep what waits, and take nothing more."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while group := self._next_group():
            try:
                kept = self._keep([batch for batch, _ in group])
            except Exception:  # those who wait need an answer, and the next ones a thread
                _log.exception("can't keep %d batches of events", len(group))
                kept = [0] * len(group)
            for (_, answer), through in zip(group, kept, strict=True):
                if answer.set_running_or_notify_cancel():
                    answer.set_result(through)

    def _next_group(self) -> list[tuple[EventBatch, Future[int]]]:
        """One batch of each source, while they aren't too many; empty: the thread ends."""
        group: list[tuple[EventBatch, Future[int]]] = []
        count = 0
        with self._wake:
            if not self._waiting and not self._closed:
                self._wake.wait(IDLE_SECONDS)
            for source in list(self._waiting):
                own = self._waiting[source]
                count += len(own[0][0].events)
                if group and count > MOST_EVENTS:
                    break
                group.append(own.popleft())
                del self._waiting[source]
                if own:
                    self._waiting[source] = own  # behind all others
            if not group:
                self._thread = None
        return group
