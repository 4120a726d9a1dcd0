"""Chunks into packs and out of them."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from weft.backup.errors import ObjectMissing
from weft.backup.format import (
    CHUNK,
    PACK_BYTES,
    PACK_CHUNKS,
    PackFrame,
    encode_index,
    open_frame,
    pack_head,
    seal_frame,
)
from weft.backup.index.catalogue import Catalogue, Spot
from weft.backup.key import Keys
from weft.backup.storage.contract import Storage, Upload
from weft.objects.errors import BackupAltered, DriverFailed

_CACHED_FRAMES = 32  # up to 1 MiB each


class PackWriter:
    """Takes new chunks, frame by frame, in order. Compressing and sealing happens in ``pool``; at most ``ahead`` frames wait."""

    def __init__(
        self,
        storage: Storage,
        keys: Keys,
        catalogue: Catalogue,
        pool: ThreadPoolExecutor,
        lease: tuple[int, str],
        retain_until: float | None,
        ahead: int,
    ) -> None:
        self._storage, self._keys, self._catalogue, self._pool = storage, keys, catalogue, pool
        self._lease, self._retain, self._ahead = lease, retain_until, ahead
        self._pending: deque[tuple[tuple[bytes, ...], Future[bytes]]] = deque()
        self._upload: Upload | None = None
        self._name, self._number, self._size, self._chunks = "", 0, 0, 0
        self._frames: list[PackFrame] = []
        self.unindexed: set[bytes] = set()  # ids that the catalogue doesn't have yet
        self.bytes = 0  # written in all

    def add(self, ids: list[bytes], chunks: list[bytes], resists: bool = False) -> None:
        """One frame: at most 16 chunks; ``resists``: they are hardly to be compressed."""
        if self._upload is not None and (self._size >= PACK_BYTES or self._chunks >= PACK_CHUNKS):
            self.close_pack()
        if self._upload is None:
            self._name = f"{self._lease[0]:08d}-{self._lease[1]}-{self._number:06d}"
            self._number += 1
            self._upload = self._storage.begin(f"packs/{self._name}", self._lease[1])
            self._upload.write(pack_head())
            self._size, self._chunks, self._frames = len(pack_head()), 0, []
        self._chunks += len(ids)
        self.unindexed.update(ids)
        named = tuple(ids)
        self._pending.append((named, self._pool.submit(_seal, self._keys, self._name, named, chunks, resists)))
        while len(self._pending) > self._ahead:
            self._write_one()

    def close_pack(self) -> None:
        """Make what was added durable: the pack, then its index, then the local catalogue."""
        while self._pending:
            self._write_one()
        if self._upload is None:
            return
        version = self._upload.commit(self._retain)
        self._upload = None
        index = encode_index(self._keys, self._name, version, self._size, self._frames)
        self._storage.put(f"index/{self._name}", index, retain_until=self._retain)
        self.bytes += self._size + len(index)
        self._catalogue.add(self._name, version, self._size, self._frames, True, self._retain or 0)
        self.unindexed.clear()

    def abandon(self) -> None:
        """Drop the pack that isn't finished. Finished ones stay, for the next try."""
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
        if self._upload is not None:
            self._upload.abandon()
            self._upload = None

    def _write_one(self) -> None:
        ids, future = self._pending.popleft()
        frame = future.result()
        upload = self._upload
        assert upload is not None
        upload.write(frame)
        self._frames.append(PackFrame(self._size, len(frame), ids))
        self._size += len(frame)


def _seal(keys: Keys, pack: str, ids: tuple[bytes, ...], chunks: list[bytes], resists: bool) -> bytes:
    return seal_frame(keys, pack, ids, b"".join(chunks), resists)


class ChunkReader:
    """Chunks by id, with the frames that were read last in memory. Any thread may call."""

    def __init__(self, storage: Storage, keys: Keys, catalogue: Catalogue, refresh: Callable[[], None]) -> None:
        self._storage, self._keys, self._catalogue, self._refresh = storage, keys, catalogue, refresh
        self._cache: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, id_: bytes) -> bytes:
        """The chunk's 64 KiB. Raises BackupAltered if no copy of it can be read, Missing if there is none."""
        return self.read_many([id_])[id_]

    def read_many(self, ids: list[bytes]) -> dict[bytes, bytes]:
        """Read up to some hundred chunks; a frame that several of them are in is read once."""
        return {id_: bytes(chunk) for id_, chunk in self.view_many(ids).items()}

    def view_many(self, ids: list[bytes]) -> dict[bytes, memoryview]:
        """The same for who passes them on at once: as parts of their frames, which they keep in memory, where at least half of a
        frame is asked for. So the answer takes up at most twice its length."""
        plain = self._try(ids)
        if len(plain) < len(set(ids)):
            self._refresh()  # a clean-up may have copied them into another pack
            plain |= self._try([id_ for id_ in ids if id_ not in plain], last=True)
        return plain

    def read_frame(self, spot: Spot) -> bytes:
        """A whole frame. Raises BackupAltered, ObjectMissing."""
        place = (spot.pack, spot.frame.offset)
        with self._lock:
            if (there := self._cache.get(place)) is not None:
                self._cache[place] = self._cache.pop(place)  # the last to be dropped
            else:
                mine = self._cache[place] = Future[bytes]()
                while len(self._cache) > _CACHED_FRAMES:
                    self._cache.popitem(last=False)
        if there is not None:
            return there.result()  # of several who want it one reads it
        try:
            raw = self._storage.get(f"packs/{spot.pack}", spot.frame.offset, spot.frame.length, spot.version)
            mine.set_result(open_frame(self._keys, spot.pack, spot.frame, raw))
        except BaseException as error:  # all who wait for it get it
            with self._lock:
                if self._cache.get(place) is mine:
                    del self._cache[place]
            mine.set_exception(error)
        return mine.result()

    def forget_frames(self) -> None:
        """Read everything again from the repository."""
        with self._lock:
            self._cache.clear()

    def _try(self, ids: list[bytes], last: bool = False) -> dict[bytes, memoryview]:
        spots = self._catalogue.find(list(set(ids)))
        wanted = Counter((found[0].pack, found[0].frame.offset) for found in spots.values() if found)
        plain: dict[bytes, memoryview] = {}
        for id_ in ids:
            if id_ in plain:
                continue
            failure: DriverFailed | None = None
            for spot in spots.get(id_, []):
                try:
                    part = memoryview(self.read_frame(spot))[spot.place * CHUNK : (spot.place + 1) * CHUNK]
                    few = 2 * wanted[spot.pack, spot.frame.offset] < len(spot.frame.ids)
                    plain[id_] = memoryview(bytes(part)) if few else part
                    break
                except ObjectMissing:
                    continue
                except DriverFailed as error:
                    failure = error
            if id_ not in plain and last:
                raise failure or missing_chunk(id_, spots.get(id_, []))
        return plain


def missing_chunk(id_: bytes, spots: list[Spot]) -> BackupAltered:
    where = f"pack {spots[0].pack} is missing" if spots else "no pack has it"
    return BackupAltered(
        f"chunk {id_.hex()[:16]} of the backup can't be read: {where}",
        details={"pack": spots[0].pack if spots else None, "chunk": id_.hex()},
        hint="bring the pack back, or restore another backup; a full backup stores the chunk again",
    )
