"""One backup being read, under a lease, so that no clean-up takes away what it needs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from weft.backup.format import CHUNK, FRAME_CHUNKS, HOLE, DiskIndex, Manifest
from weft.backup.index.tree import Tree, count_chunks
from weft.backup.key import Keys
from weft.backup.lease import Lease
from weft.backup.packs import ChunkReader
from weft.contracts.durable_file import keep_file
from weft.objects.errors import InvalidInput, NotFound

_AHEAD = 8  # reads of up to 16 chunks


class BackupReader:
    """Any thread may call. ``protected`` is False where no lease could be written: a repository mounted read-only."""

    def __init__(self, keys: Keys, chunks: ChunkReader, manifest: Manifest, lease: Lease | None) -> None:
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

    def read_data(self, disk: str, first: int, count: int) -> list[tuple[int, bytes]]:
        """Of these chunks what holds data, as runs: their offsets, and bytes up to the disk's end. Raises BackupAltered."""
        size, runs = self._find(disk).size, list[tuple[int, list[bytes]]]()
        ids = list(self.tree(disk).ids(first, count))
        plain = self._chunks.read_many([id_ for id_ in ids if id_ != HOLE])
        follows = False
        for number, id_ in enumerate(ids, first):
            if id_ != HOLE:
                if not follows:
                    runs.append((number * CHUNK, []))
                runs[-1][1].append(plain[id_])
            follows = id_ != HOLE
        return [(offset, b"".join(parts)[: size - offset]) for offset, parts in runs]

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
        under_way: deque[tuple[int, list[bytes], Future[dict[bytes, bytes]]]] = deque()

        def write_one() -> None:
            first, ids, plain = under_way.popleft()
            for number, id_ in enumerate(ids, first):
                if id_ != HOLE:
                    _write_at(descriptor, plain.result()[id_][: size - number * CHUNK], number * CHUNK)

        with ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="restore") as pool:
            first = 0
            for ids in _batches(self.tree(disk).ids(0, count_chunks(size))):
                if any(id_ != HOLE for id_ in ids):
                    under_way.append((first, ids, pool.submit(self._chunks.read_many, [i for i in ids if i != HOLE])))
                first += len(ids)
                if len(under_way) > _AHEAD:
                    write_one()
            while under_way:
                write_one()

    def _find(self, name: str) -> DiskIndex:
        disk = self.manifest.disk(name)
        if disk is None:
            names = ", ".join(disk.name for disk in self.manifest.disks) or "none"
            raise NotFound(f"backup {self.manifest.id} has no disk {name}", field="disk", hint=f"its disks: {names}")
        return disk


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _batches(ids: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for id_ in ids:
        batch.append(id_)
        if len(batch) == FRAME_CHUNKS:
            yield batch
            batch = []
    if batch:
        yield batch
