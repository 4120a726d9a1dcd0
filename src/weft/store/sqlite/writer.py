"""The one thread that writes. It takes what waits, up to a limit, commits it with one fsync, then tells the loop.

Each request in a group succeeds or fails alone: what a request refuses it refuses before its first write. If something
unexpected breaks the group, it is rolled back and every request is tried again by itself, so only the culprit fails.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from weft.contracts.clock import Clock
from weft.contracts.store import Change
from weft.objects.errors import WeftError
from weft.store.limits import KEEP_SECONDS
from weft.store.sqlite.bounded import Bounded
from weft.store.sqlite.file import LockFile, as_store_error
from weft.store.sqlite.schema import State, save_state
from weft.store.sqlite.transaction import Head, Transaction

_GROUP_REQUESTS = 256
_GROUP_BYTES = 8_000_000
_WORTHWHILE_REQUESTS = 8  # that a commit of their own costs little more for each …
_LONG_TURN_SECONDS = 0.001  # … and a turn of the loop in which they are made in the meantime
_BITE_ROWS = 500
_KNOWN_BYTES = 32_000_000  # of values, which are mostly the very ones that the newest entries are


class WriteRequest(NamedTuple):
    """One thing to do inside a transaction; ``bytes`` is what it will write, about."""

    apply: Callable[[Transaction], Any]
    bytes: int
    future: asyncio.Future[Any]


class WriteOutcome(NamedTuple):
    request: WriteRequest
    result: Any
    error: WeftError | None


Published = tuple[int, list[Change]]  # a revision and what it changed

# Called on the loop, in order of commit: what became of the requests, the commits to show to watches, and the revision up
# to which history is forgotten.
Deliver = Callable[[Sequence[WriteOutcome], Sequence[Published], int], None]


class _History:
    """Start of the newest ``keep_bytes`` of history, give or take a step; counted from the opening of the store."""

    def __init__(self, revision: int, keep_bytes: int) -> None:
        self.oldest = 0  # history before this revision is more than is kept
        self._keep_bytes = keep_bytes
        self._step_bytes = keep_bytes // 32
        self._written = 0
        self._steps = deque([(revision, 0)])  # a revision, and what had been written when it was made

    def add(self, revision: int, size_bytes: int) -> None:
        self._written += size_bytes
        if self._written - self._steps[-1][1] > self._step_bytes:
            self._steps.append((revision, self._written))
        while self._written - self._steps[0][1] > self._keep_bytes and len(self._steps) > 1:
            self.oldest = self._steps.popleft()[0]


class Writer:
    """Owns the writing connection. ``submit`` and ``stop`` are for the loop's thread."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        state: State,
        lock: LockFile,
        clock: Clock,
        holds: Callable[[str, int], bool],
        deliver: Deliver,
        *,
        keep_revisions: int,
        keep_bytes: int,
    ) -> None:
        self._path = path
        self._connection = connection
        self._state = state
        self._lock = lock
        self._clock = clock
        self._holds = holds
        self._deliver = deliver
        self._keep_revisions = keep_revisions
        self._history = _History(state.revision, keep_bytes)
        self._queue: queue.SimpleQueue[list[WriteRequest] | None] = queue.SimpleQueue()
        self._gathered: list[WriteRequest] = []  # in this turn of the loop
        self._begun_at = 0.0  # when the first of them came
        self._idle = False  # whether the thread waits for something to do
        self._turned_at = clock.elapsed()
        self._known = Bounded[Head | None](_KNOWN_BYTES)
        self._trimming = True  # there may be rows left to trim
        self._outdated = True  # there may be idempotency keys left that are no longer kept
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, apply: Callable[[Transaction], Any], size_bytes: int) -> asyncio.Future[Any]:
        """Ask for ``apply`` to be run in a transaction; the future resolves once that is durable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._gathered.append(WriteRequest(apply, size_bytes, future))
        if len(self._gathered) == 1:  # all that one turn of the loop asks for shares an fsync …
            self._begun_at = self._clock.elapsed()
            self._loop.call_soon(self._hand_over)
        elif (
            len(self._gathered) >= _WORTHWHILE_REQUESTS
            and self._idle
            and self._clock.elapsed() - self._begun_at >= _LONG_TURN_SECONDS
        ):  # … but for a long one: the disk is at work on the first half while the loop is on the second
            self._hand_over()
        return future

    async def stop(self) -> None:
        """Finish what was submitted, then end the thread and close the connection."""
        self._hand_over()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._connection.close()

    def _hand_over(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._queue.put(gathered)

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._take_group()
            if group:
                self._perform(group)
            elif not stopping:
                self._trim_while_idle()

    def _take_group(self) -> tuple[list[WriteRequest], bool]:
        """Requests that wait now, about so many as go together, and whether the end was asked for; waits for one unless there are
        rows to trim."""
        group: list[WriteRequest] = []
        size = 0
        while len(group) < _GROUP_REQUESTS and size < _GROUP_BYTES:
            try:
                self._idle = True
                gathered = self._queue.get(block=not group and not self._trimming)
            except queue.Empty:
                break
            finally:
                self._idle = False
            if gathered is None:
                return group, True
            wanted = [request for request in gathered if not request.future.cancelled()]
            group += wanted
            size += sum(request.bytes for request in wanted)
        return group, False

    def _perform(self, group: list[WriteRequest]) -> None:
        try:
            done = self._commit_group(group, trim=True)
        except Exception:  # whatever one request did to the group, each gets its own chance and its own answer
            self._roll_back()
            for request in group:
                self._perform_alone(request)
            return
        self._report(*done)

    def _perform_alone(self, request: WriteRequest) -> None:
        try:
            done = self._commit_group([request], trim=False)
        except Exception as problem:  # the caller gets it, whatever it is, and the writer goes on
            self._roll_back()
            self._report([WriteOutcome(request, None, as_store_error(problem, self._path))], [])
            return
        self._report(*done)

    def _commit_group(self, group: Sequence[WriteRequest], *, trim: bool) -> tuple[list[WriteOutcome], list[Published]]:
        """One transaction; whatever is raised, nothing of it was committed."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        rows_before = connection.total_changes
        transaction = Transaction(connection, self._state, self._known, self._holds)
        outcomes: list[WriteOutcome] = []
        for request in group:
            try:
                outcomes.append(WriteOutcome(request, request.apply(transaction), None))
            except WeftError as refusal:
                outcomes.append(WriteOutcome(request, None, refusal))
        transaction.flush()
        self._turn(transaction)
        trimming, outdated = True, self._outdated
        if trim:
            outdated = outdated and transaction.trim_idempotency()
            bite_rows = max(_BITE_ROWS, 2 * transaction.rows)
            trimming = transaction.trim(self._keep_revisions, self._history.oldest, bite_rows) or outdated
        if transaction.state == self._state and connection.total_changes == rows_before:
            connection.execute("ROLLBACK")  # nothing was written, so nothing needs an fsync
        else:
            save_state(connection, transaction.state)
            connection.execute("COMMIT")
        transaction.learn()
        self._state = transaction.state
        self._trimming, self._outdated = trimming, outdated
        self._history.add(transaction.state.revision, transaction.bytes)
        return outcomes, transaction.published

    def _turn(self, transaction: Transaction) -> None:
        now = self._clock.elapsed()
        if now - self._turned_at >= KEEP_SECONDS:
            transaction.turn_idempotency()
            self._turned_at, self._outdated = now, True

    def _trim_while_idle(self) -> None:
        try:
            done = self._commit_group((), trim=True)
        except Exception:
            # Disk full, or locked: history just stays longer. The next commit meets the same trouble and reports it.
            self._roll_back()
            self._trimming = False
            return
        self._report(*done)

    def _roll_back(self) -> None:
        self._known.clear()  # whatever went wrong, the file is asked anew
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _report(self, outcomes: Sequence[WriteOutcome], published: Sequence[Published]) -> None:
        self._lock.write_mark(self._state)
        with suppress(RuntimeError):  # the loop was closed: no caller is left
            self._loop.call_soon_threadsafe(self._deliver, outcomes, published, self._state.compacted)
