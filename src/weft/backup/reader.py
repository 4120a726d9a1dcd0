"""One backup being read, under a lease, so that no clean-up takes away what it needs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from weft.backup.format import CHUNK, FRAME_CHUNKS, HOLE, BackupManifest, DiskIndex
from weft.backup.index.tree import Tree, count_chunks
from weft.backup.key import Keys
from weft.backup.lease import Lease
from weft.backup.packs import ChunkReader
from weft.backup.parts import drop_front
from weft.contracts.durable_file import keep_file
from weft.objects.errors import InvalidInput, NotFound

STEP = 64  # chunks that are read together
_AHEAD = 4  # steps
SYNC_BYTES = 128 << 20  # written until they are synced, beside what is written next

Run = tuple[int, list[memoryview]]  # an offset, and the chunks from there on


class BackupReader:
    """Any thread may call. ``protected`` is False where no lease could be written: a repository mounted read-only."""

    def __init__(self, keys: Keys, chunks: ChunkReader, manifest: BackupManifest, lease: Lease | None) -> None:
        self.manifest, self.protected = manifest, lease is not None
        self._keys, self._chunks, self._lease = keys, chunks, lease
        self._trees: dict[str, Tree] = {}

    def tree(self, disk: str) -> Tree:
        if disk not in self._trees:
            self._trees[disk] = Tree(self._keys, self._chunks.read, self._find(disk))
        return self._trees[disk]

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``. Raises InvalidInput beyond the disk's end, BackupAltered if they are damaged."""
        if offset < 0 or length < 0 or offset + length > self._find(disk).size:
            raise InvalidInput(f"{length} bytes at {offset} are not within disk {disk}", field="offset")
        first, end = offset // CHUNK, count_chunks(offset + length)
        parts = []
        for batch in _batches(self.tree(disk).ids(first, end - first if length else 0)):
            plain = self._chunks.read_many([id_ for id_ in batch if id_ != HOLE])
            parts += [plain.get(id_) or bytes(CHUNK) for id_ in batch]
        return b"".join(parts)[offset - first * CHUNK :][:length]

    def read_data(self, disk: str, first: int, count: int) -> list[Run]:
        """Read the data of these chunks, in runs, up to the disk's end. Raises BackupAltered."""
        size, runs = self._find(disk).size, list[Run]()
        ids = list(self.tree(disk).ids(first, count))
        plain = self._chunks.view_many([id_ for id_ in ids if id_ != HOLE])
        follows = False
        for number, id_ in enumerate(ids, first):
            if id_ != HOLE:
                if not follows:
                    runs.append((number * CHUNK, []))
                runs[-1][1].append(plain[id_][: size - number * CHUNK])
            follows = id_ != HOLE
        return runs

    def export(self, disk: str, path: Path) -> None:
        """The whole disk as a sparse raw file at ``path``, which is there once it is complete and durable."""
        size = self._find(disk).size
        work = path.with_name(f".{path.name}.restoring")
        descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.ftruncate(descriptor, size)
                self._write_all(disk, size, descriptor)
            finally:
                os.close(descriptor)
            keep_file(work, path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise

    def __enter__(self) -> BackupReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease:
            self._lease.end()

    def _write_all(self, disk: str, size: int, descriptor: int) -> None:
        """Several threads read, decrypt and write; one has the disk write meanwhile."""
        chunks, under_way, written = count_chunks(size), deque[Future[int]](), 0

        def copy(first: int) -> int:
            return sum(_write_run(descriptor, run) for run in self.read_data(disk, first, min(STEP, chunks - first)))

        workers = max(2, min(4, os.cpu_count() or 2))
        with (
            ThreadPoolExecutor(workers, thread_name_prefix="restore") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="sync") as sync,
        ):
            syncing: Future[None] | None = None
            for first in range(0, chunks, STEP):
                under_way.append(pool.submit(copy, first))
                if len(under_way) > _AHEAD:
                    written += under_way.popleft().result()
                if written >= SYNC_BYTES and (syncing is None or syncing.done()):
                    if syncing is not None:
                        syncing.result()  # the kernel tells of a failed write once: the sync at the end may know nothing of it
                    syncing, written = sync.submit(os.fdatasync, descriptor), 0
            for copied in under_way:
                copied.result()
            if syncing is not None:
                syncing.result()

    def _find(self, name: str) -> DiskIndex:
        disk = self.manifest.disk(name)
        if disk is None:
            names = ", ".join(disk.name for disk in self.manifest.disks) or "none"
            raise NotFound(f"backup {self.manifest.id} has no disk {name}", field="disk", hint=f"its disks: {names}")
        return disk


def _write_run(descriptor: int, run: Run) -> int:
    """How many bytes they are."""
    offset, parts = run
    while parts:
        done = os.pwritev(descriptor, parts, offset)
        offset += done
        parts = drop_front(parts, done)
    return offset - run[0]


def _batches(ids: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for id_ in ids:
        batch.append(id_)
        if len(batch) == FRAME_CHUNKS:
            yield batch
            batch = []
    if batch:
        yield batch
