"""The store's disk, which outlives its process: the real engines, with every commit noted and signed by who made it.

``MemoryLedger`` stands for a disk that never errs; ``SqliteLedger`` is the shipped engine on a real file, whose process may
die between any two of its steps, whose disk fills, and whose file is backed up and restored by the shipped code.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

from tests.simulation.truth import Violation, Witness
from tests.simulation.virtual_loop import Part, part_here
from weft.contracts.clock import Clock
from weft.contracts.store import Change, Precondition, Write
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import StoreUnavailable
from weft.store.backup import Backup, read_backup, write_backup
from weft.store.copy import fill
from weft.store.cursors import make_epoch
from weft.store.leases import LeaseTable
from weft.store.memory import MemoryStore
from weft.store.sqlite import store as sqlite_store
from weft.store.sqlite import writer as sqlite_writer
from weft.store.sqlite.reader import Readers
from weft.store.sqlite.refill import SqliteRefill
from weft.store.sqlite.store import SqliteStore
from weft.store.sqlite.writer import Writer
from weft.store.watches import Watches


class Notes:
    """What is in the store, as its commits say, and all that was ever committed, as a digest."""

    def __init__(self, clock: Clock, witness: Witness) -> None:
        self._clock, self._witness = clock, witness
        self.values: dict[str, bytes] = {}
        self._read: dict[str, Envelope] = {}  # what they are, once that was asked
        self.commits = 0
        self.trace = hashlib.sha256()

    def see(self, writer: str, changes: Sequence[Change]) -> None:
        """One commit. Raises Violation for what must never be."""
        self.commits += 1
        self._witness.note_time(self._clock.elapsed())
        for change in changes:
            self.trace.update(f"{self._clock.elapsed():.6f} {writer} {change.key} ".encode() + (change.value or b""))
            was = self._find(change.key)
            self.values.pop(change.key, None)
            self._read.pop(change.key, None)
            if change.value is not None:
                self.values[change.key] = change.value
            now = self._find(change.key)
            if was is None and now is None:
                continue
            self._witness.see_commit(writer, was, now)

    def fail(self, what: str) -> None:
        """Raises Violation."""
        self._witness.fail(what)

    def begin_history(self, epoch: str) -> None:
        """What nodes say is of this history, once they have heard of it."""
        self._witness.epoch = epoch

    def go_back(self, values: dict[str, bytes]) -> None:
        """The store is as it was when it held ``values``."""
        self.values, self._read = dict(values), {}
        self.trace.update(f"{self._clock.elapsed():.6f} restored".encode())
        self._witness.see_restore(self.objects("allocation"), self.objects("node"), self._clock.elapsed())

    def objects(self, kind: str) -> list[Envelope]:
        """All of a kind in the order of their keys. Nobody changes them."""
        keys = sorted(key for key in self.values if key.startswith(f"/{kind}/"))
        return [found for key in keys if (found := self._find(key)) is not None]

    def _find(self, key: str) -> Envelope | None:
        """The object at this key, if it is one."""
        found = self._read.get(key)
        if found is None and key in self.values and not key.startswith(("/enrolment/", "/-")):
            found = self._read[key] = decode_envelope(self.values[key])
        return found


class Ledger(Protocol):
    """A store whose process may end. ``commit_as`` is a commit signed by its writer."""

    notes: Notes

    async def open(self) -> None: ...

    async def commit_as(
        self,
        writer: str,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        idempotency_key: str | None = None,
    ) -> int: ...

    def of(self, process: str) -> Any:
        """The store as this process asks it."""

    def end_process(self) -> None:
        """Its process is gone: leases and what was not committed with it."""

    def forget(self, part: Part) -> None:
        """Nobody of a dead process reads on."""

    async def back_up(self) -> None: ...

    def restore(self) -> bool:
        """Put the last backup in the place of what there is, while no process has it open; False if there is none."""

    def fill_disk(self, full: bool) -> bool:
        """Whether this disk can be full by itself; if so it is from now on, or no longer."""


class MemoryLedger(MemoryStore):
    def __init__(self, clock: Clock, notes: Notes) -> None:
        super().__init__(clock)
        self.notes = notes
        self._writer = ""
        self._backup: dict[str, Any] | None = None
        self._watches = OwnedWatches(self._epoch, 0, self._replay)

    async def commit_as(
        self,
        writer: str,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        idempotency_key: str | None = None,
    ) -> int:
        self._writer = writer
        return await self.commit(writes, preconditions, idempotency_key=idempotency_key)

    def of(self, process: str) -> MemoryLedger:
        return self

    def _apply(self, writes: Sequence[Write]) -> int:
        before, revision = self._revision, super()._apply(writes)
        if revision != before:
            self.notes.see(self._writer, self._log[-1].changes)
        return revision

    def end_process(self) -> None:
        self._leases = LeaseTable(self._clock, last_fence=self._leases._last_fence)

    def forget(self, part: Part) -> None:
        self._watches.forget(part)  # type: ignore[attr-defined]

    async def back_up(self) -> None:
        self._backup = {"entries": dict(self._entries), "keys": list(self._keys), "values": dict(self.notes.values)}

    def restore(self) -> bool:
        if self._backup is None:
            return False
        self._entries, self._keys = dict(self._backup["entries"]), list(self._backup["keys"])
        self._epoch, self._log, self._recent, self._older = make_epoch(), [], {}, {}
        self._revision = self._compacted = self._revision + 1_000
        self._watches = OwnedWatches(self._epoch, self._revision, self._replay)
        self.notes.go_back(self._backup["values"])
        self.notes.begin_history(self._epoch)
        return True

    def fill_disk(self, full: bool) -> bool:
        return False


class SqliteLedger(SqliteStore):
    """``open`` is called by the process that has the file; ``end_process`` leaves on disk what kill -9 would leave."""

    def __init__(self, folder: Path, clock: Clock, notes: Notes) -> None:
        super().__init__(folder / "store.db", clock, readers=1)
        self.notes = notes
        self.signer: str | None = None  # of the commit that is being submitted
        self._backup: Backup | None = None  # the last one
        self._backups = 0
        self._opened: tuple[Any, ...] | None = None

    def _start(self, *opened: Any) -> None:
        with (  # nothing is waited for in here: an opening that is killed then would leave these to whoever comes next
            mock.patch.object(sqlite_store, "Writer", lambda *given, **more: _SteppedWriter(self, *given, **more)),
            mock.patch.object(sqlite_store, "Readers", _SteppedReaders),
            mock.patch.object(sqlite_store, "Watches", OwnedWatches),
            mock.patch.object(sqlite_writer, "threading", mock.Mock()),
        ):
            super()._start(*opened)
        self.notes.begin_history(opened[1].epoch)

    def _open_file(self) -> Any:
        self._opened = super()._open_file()
        return self._opened

    async def commit_as(
        self,
        writer: str,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        idempotency_key: str | None = None,
    ) -> int:
        work = self.commit(writes, preconditions, idempotency_key=idempotency_key)
        self.signer = writer  # until the first await of ``work``, by which it is submitted
        try:
            return await work
        finally:
            self.signer = None

    def of(self, process: str) -> SqliteLedger:
        return self

    def end_process(self) -> None:
        running, self._running = self._running, None
        opened, self._opened = self._opened, None
        with self._keeping_files():
            for connection in running.readers._connections if running is not None else ():
                connection.close()
            if opened is not None:
                opened[0].close()
                opened[2].release()

    @contextlib.contextmanager
    def _keeping_files(self) -> Iterator[None]:
        """Closing tidies up the log; a killed process leaves it to be recovered."""
        files = [self._path, self._path.with_name(self._path.name + "-wal")]
        aside = [path.with_name(path.name + ".aside") for path in files if path.exists()]
        for path in aside:
            shutil.copyfile(path.with_suffix(""), path)
        yield
        self._path.with_name(self._path.name + "-shm").unlink(missing_ok=True)
        for path in aside:
            path.replace(path.with_suffix(""))

    def forget(self, part: Part) -> None:
        if self._running is not None:
            self._running.watches.forget(part)  # type: ignore[attr-defined]

    async def back_up(self) -> None:
        self._backups += 1
        path = self._path.with_name(f"{self._backups}.backup")
        with contextlib.suppress(StoreUnavailable):
            self._backup = await write_backup(path, self, dict, weft="simulated", taken_at=0.0)

    def restore(self) -> bool:
        if self._backup is None:
            return False
        backup = read_backup(self._backup.path)
        filling = fill(SqliteRefill(self._path), backup.entries(), backup.header.revision)
        with ThreadPoolExecutor(1) as beside:  # the loop here is virtual
            beside.submit(asyncio.run, filling).result()
        self.notes.go_back(dict(backup.entries()))
        return True

    def fill_disk(self, full: bool) -> bool:
        self._max_bytes = None
        if self._opened is None:
            return False
        execute = self._opened[0].execute
        pages, page_bytes = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        execute(f"PRAGMA max_page_count = {pages if full else 2**30}")
        if full:
            self._max_bytes = pages * page_bytes
        return True


class _SteppedWriter(Writer):
    """The writer without its thread: it takes what waits a little after it came, as one step of the store's process."""

    def __init__(self, ledger: SqliteLedger, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._ledger = ledger
        self._signers: dict[Any, str] = {}
        self._context = contextvars.copy_context()
        self._draw = random.Random(0)
        self._awake = False

    def submit(self, apply: Any, size_bytes: int) -> Any:
        future = self._context.run(
            super().submit, apply, size_bytes
        )  # the store's process does it, whoever asked and ended
        signer, self._ledger.signer = self._ledger.signer, None
        if signer is not None:
            self._signers[future] = signer
        if not self._awake:
            self._awake = True
            self._loop.call_later(self._draw.random() * 0.004, self._step, context=self._context)
        return future

    def _step(self) -> None:
        self._awake = False
        while not self._queue.empty():
            self._trimming = True  # so that taking never waits
            group, _ = self._take_group()
            if group:
                self._perform(group)
        if self._trimming:  # as its thread does: only if something is left to trim
            self._trim_while_idle()

    def _report(self, outcomes: Any, published: Any) -> None:
        writers: dict[int, str] = {}
        for outcome in outcomes:
            signer = self._signers.pop(outcome.request.future, None)
            if signer is not None and outcome.error is None:
                writers.setdefault(outcome.result, signer)
        with contextlib.suppress(Violation):
            for revision, changes in published:
                self._ledger.notes.see(writers[revision], changes)
        super()._report(outcomes, published)


class _SteppedReaders(Readers):
    """Reads as steps of the loop's: what is read was true when it was asked for."""

    async def run(self, read: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._read, read)


class OwnedWatches(Watches):
    """Watches that know whose they are, and are told in the order in which they came."""

    def _join(self, prefix: str) -> Any:
        watcher = super()._join(prefix)
        watchers = self._by_prefix[prefix]
        if not isinstance(watchers, _Ordered):
            self._by_prefix[prefix] = _Ordered(watchers)  # type: ignore[assignment]
            watchers = self._by_prefix[prefix]
        watcher.part = part_here()  # type: ignore[attr-defined]
        watchers.add(watcher)
        return watcher

    def forget(self, part: Part) -> None:
        for watchers in list(self._by_prefix.values()):
            for watcher in [w for w in watchers if getattr(w, "part", None) is part]:
                self._leave(watcher)


class _Ordered(dict[Any, None]):
    """The few methods of a set that Watches uses, in order of arrival."""

    def __init__(self, items: Any) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


def make_ledger(store: str, folder: Path, clock: Clock, notes: Notes) -> MemoryLedger | SqliteLedger:
    return MemoryLedger(clock, notes) if store == "memory" else SqliteLedger(folder, clock, notes)
