"""One backup being written: read, hash, compress and seal, write, with at most some tens of MiB under way."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

from weft.backup.format import (
    CHUNK,
    FRAME_CHUNKS,
    HOLE,
    ZEROS,
    BackupManifest,
    DiskIndex,
    encode_manifest,
    resists_compression,
    sign_disk,
)
from weft.backup.index.catalogue import Catalogue
from weft.backup.index.tree import Tree, TreeBuilder, count_chunks
from weft.backup.key import Keys
from weft.backup.lease import Lease
from weft.backup.packs import ChunkReader, PackWriter
from weft.backup.retention import Retention
from weft.backup.storage.contract import Storage
from weft.contracts.clock import Clock
from weft.objects.errors import BackupLeaseLost, InvalidInput, NotFound

WORKERS = max(2, min(4, os.cpu_count() or 2))
_BATCHES = 4  # read ahead of the hashing, 1 MiB each

Read = Callable[[int, int], bytes]
Change = tuple[int, int, bool]  # offset, length, whether it is zero
Sort = Literal["data", "resisting", "nodes"]  # what is alike is compressed together
Found = list[tuple[bytes, Sort]]  # ids, and what their chunks are
Batch = tuple[list[int], list[bytes], Future[Found]]  # chunk numbers, their bytes, what was found


class BackupWriter:
    """``disk`` once for each disk, then ``publish``. Left without that, nothing is published, and what was stored is found
    again by the next backup. One thread at a time."""

    def __init__(
        self,
        storage: Storage,
        keys: Keys,
        catalogue: Catalogue,
        chunks: ChunkReader,
        clock: Clock,
        lease: Lease,
        avoided: set[str],
        previous: BackupManifest | None,
        retention: Retention,
    ) -> None:
        self.id = secrets.token_hex(16)
        self._storage, self._keys, self._catalogue, self._chunks = storage, keys, catalogue, chunks
        self._clock, self._lease, self._previous, self._retention = clock, lease, previous, retention
        self._avoided = avoided  # packs that a clean-up may delete, or that are damaged
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="backup")
        self._packs = PackWriter(
            storage, keys, catalogue, self._pool, (lease.generation, lease.id), retention.until, WORKERS + 2
        )
        self._new: dict[Sort, tuple[list[bytes], list[bytes]]] = {
            "data": ([], []),
            "resisting": ([], []),
            "nodes": ([], []),
        }
        self._disks: list[DiskIndex] = []

    def disk(
        self,
        name: str,
        size: int,
        read: Read,
        changes: Iterable[Change] | None = None,
        previous: str | None = None,
    ) -> DiskIndex:
        """Store a disk of ``size`` bytes. ``read(offset, length)`` gives its bytes; ``changes``, in order, the ranges that may
        differ from disk ``previous`` of the backup this writer builds on, or without one those that may hold data. None: all.
        Ranges are widened to whole chunks. Raises InvalidInput, NotFound, and what ``read`` raises."""
        if size < 0 or any(disk.name == name for disk in self._disks):
            raise InvalidInput(f"disk {name!r} has a wrong size or comes twice", field="disks")
        old = self._find_previous(previous) if previous is not None else None
        tree = Tree(self._keys, self._chunks.read, old) if old else None
        builder = TreeBuilder(size, self._store_node, tree, old.size if old else 0, old.stored_chunks if old else 0)
        ranges = [(0, size, False)] if changes is None else changes
        if old and tree:
            ranges = self._retention.widen(ranges, tree, old, size, self._avoided)
        under_way: deque[Batch] = deque()
        for batch in self._read_batches(size, _cut(ranges, size, old.size if old else 0), read, builder):
            under_way.append(batch)
            if len(under_way) > _BATCHES:
                self._take(builder, *under_way.popleft())
        while under_way:
            self._take(builder, *under_way.popleft())
        depth, root = builder.finish()
        disk = DiskIndex(name=name, size=size, depth=depth, stored_chunks=builder.stored_chunks, root=root, mac="")
        self._disks.append(sign_disk(self._keys, self.id, disk))
        return self._disks[-1]

    def publish(
        self, *, kind: str, name: str, spec: Any = None, labels: dict[str, str] | None = None
    ) -> BackupManifest:
        """Make the backup be there: all of it is durable before its manifest is. Raises BackupLeaseLost if a clean-up took this
        writer for dead."""
        for sort in self._new:
            self._flush(sort)
        self._packs.close_pack()
        self._retention.extend(Tree(self._keys, self._chunks.read, disk) for disk in self._disks)
        manifest = BackupManifest(
            id=self.id,
            lease=self._lease.id,
            created=self._clock.now(),
            kind=kind,
            name=name,
            disks=tuple(self._disks),
            stored_bytes=self._packs.bytes,
            keep_until=self._retention.keep_until,
            spec=spec,
            labels=labels or {},
        )
        sealed = encode_manifest(self._keys, manifest)
        self._lease.check()
        until = self._retention.keep_until
        if until is not None and until <= self._clock.now():  # it took longer than it is kept
            until = None
        self._storage.put(f"backups/{self.id}", sealed, retain_until=until)
        try:
            self._lease.check()  # a machine that slept between the two finds out now
        except BackupLeaseLost:
            self._storage.delete(f"backups/{self.id}")
            raise
        self._catalogue.keep_manifest(self.id, sealed)
        return manifest

    def __enter__(self) -> BackupWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._packs.abandon()
        self._pool.shutdown(cancel_futures=True)
        self._lease.end()

    def _find_previous(self, name: str) -> DiskIndex:
        disk = self._previous.disk(name) if self._previous else None
        if disk is None:
            raise NotFound(
                f"the backup that this one builds on has no disk {name}",
                field="previous",
                hint="store the disk whole, without a previous one",
            )
        return disk

    def _read_batches(
        self, size: int, runs: Iterator[tuple[int, int, bool]], read: Read, builder: TreeBuilder
    ) -> Iterator[Batch]:
        """Read runs of chunks, short ones together, and hash them. Zero runs are batches without bytes, to keep the order."""
        numbers, chunks = list[int](), list[bytes]()
        for first, count, zero in runs:
            at, end = first, first + count
            while at < end:
                if numbers and (zero or len(numbers) == FRAME_CHUNKS):
                    yield numbers, chunks, self._pool.submit(_identify, self._keys, chunks)
                    numbers, chunks = [], []
                few = min(end - at, FRAME_CHUNKS - len(numbers))
                if zero:
                    yield list(range(at, at + few)), [], _done([(HOLE, "data")] * few)
                else:
                    numbers += range(at, at + few)
                    chunks += _read_chunks(read, at * CHUNK, min((at + few) * CHUNK, size))
                at += few
        if numbers:
            yield numbers, chunks, self._pool.submit(_identify, self._keys, chunks)

    def _take(self, builder: TreeBuilder, numbers: list[int], chunks: list[bytes], future: Future[Found]) -> None:
        found = future.result()
        known = self._find_known([id_ for id_, _ in found if id_ != HOLE])
        for place, (id_, sort) in enumerate(found):
            if id_ != HOLE and id_ not in known:
                self._add(id_, chunks[place], sort)
                known.add(id_)
            builder.set(numbers[place], id_)

    def _store_node(self, node: bytes) -> bytes:
        id_ = self._keys.node_id(node)
        if id_ not in self._find_known([id_]):
            self._add(id_, node, "nodes")
        return id_

    def _find_known(self, ids: list[bytes]) -> set[bytes]:
        """Find the chunks that needn't be stored: they lie in a pack that stays, and that stays locked long enough."""
        here = self._packs.unindexed
        known = {id_ for id_ in ids if id_ in here or any(id_ in new[0] for new in self._new.values())}
        spots = self._catalogue.find([id_ for id_ in ids if id_ not in known])
        for id_, copies in spots.items():
            if any(spot.pack not in self._avoided and self._retention.covers(spot.pack) for spot in copies):
                known.add(id_)
        return known

    def _add(self, id_: bytes, chunk: bytes, sort: Sort) -> None:
        ids, chunks = self._new[sort]
        ids.append(id_)
        chunks.append(chunk)
        if len(ids) == FRAME_CHUNKS:
            self._flush(sort)

    def _flush(self, sort: Sort) -> None:
        ids, chunks = self._new[sort]
        if ids:
            self._packs.add(ids, chunks, sort == "resisting")
            self._new[sort] = ([], [])


def _read_chunks(read: Read, offset: int, end: int) -> Iterator[bytes]:
    """These bytes of a disk in chunks, the last one filled up."""
    data = read(offset, end - offset)
    if len(data) != end - offset:
        raise InvalidInput(
            f"the disk gave {len(data)} of {end - offset} bytes at {offset}",
            field="read",
            hint="back it up again with its present size",
        )
    return (bytes(data[at : at + CHUNK]).ljust(CHUNK, b"\0") for at in range(0, len(data), CHUNK))


def _identify(keys: Keys, chunks: list[bytes]) -> Found:
    return [
        (HOLE, "data")
        if chunk == ZEROS
        else (keys.chunk_id(chunk), "resisting" if resists_compression(chunk) else "data")
        for chunk in chunks
    ]


def _done(found: Found) -> Future[Found]:
    future: Future[Found] = Future()
    future.set_result(found)
    return future


def _cut(ranges: Iterable[Change], size: int, old_size: int) -> Iterator[tuple[int, int, bool]]:
    """Ranges as runs of whole chunks (first, count, zero), each chunk once. A shrunk disk's last chunk is among them: what
    lay behind its new end is not the disk's any more."""
    following = 0  # the first chunk that no run has had
    before = 0
    last = size // CHUNK if size % CHUNK and size < old_size else None
    for offset, length, zero in ranges:
        if offset < before or length < 0 or offset + length > size:
            raise InvalidInput(
                f"the change of {length} bytes at {offset} is outside of the disk or out of order",
                field="changes",
                hint="give ranges within the disk, sorted by offset",
            )
        before = offset
        if not length:
            continue
        first, end = max(offset // CHUNK, following), count_chunks(offset + length)
        if first >= end:
            continue
        whole_from = first if offset <= first * CHUNK else first + 1
        whole_to = end if (offset + length) % CHUNK == 0 or offset + length == size else end - 1
        if zero and whole_to > whole_from:
            if first < whole_from:
                yield first, whole_from - first, False
            yield whole_from, whole_to - whole_from, True
            if whole_to < end:
                yield whole_to, end - whole_to, False
        else:
            yield first, end - first, False
        following = end
    if last is not None and following <= last:
        yield last, 1, False
