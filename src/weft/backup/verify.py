"""Read and decrypt everything that backups need, and name what is damaged and whom it harms."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec

from weft.backup.errors import ObjectMissing
from weft.backup.format import CHUNK, BackupManifest
from weft.backup.index.catalogue import Catalogue, Spot
from weft.backup.index.id_table import IdTable
from weft.backup.index.tree import Tree
from weft.backup.key import Keys
from weft.backup.packs import ChunkReader
from weft.objects.errors import DriverFailed, WeftError

_LOOKUP = 256
_AHEAD = 8


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """One part that can't be read: a frame of a pack, a chunk that no pack has, an index, a manifest."""

    what: str  # "pack", "chunk", "index" or "manifest"
    name: str  # the pack's, the chunk's id, the backup's
    offset: int | None = None  # in the pack
    message: str = ""
    backups: tuple[str, ...] = ()  # that need it


class Verification(msgspec.Struct, kw_only=True):
    sound: list[str] = []
    damaged: list[str] = []
    damages: list[Damage] = []
    chunks: int = 0  # that were read
    bytes: int = 0  # of the repository, that were read


class Verifier:
    """Each frame is read once, however many of the backups need it. Another copy of a chunk counts where one is damaged."""

    def __init__(
        self, keys: Keys, catalogue: Catalogue, chunks: ChunkReader, read_index: Callable[[str], None]
    ) -> None:
        """``read_index`` raises DriverFailed or ObjectMissing for a pack whose index can't be read."""
        self._keys, self._catalogue, self._chunks = keys, catalogue, chunks
        self._read_index = read_index
        self.lost_indexes: set[str] = set()  # that are missing or damaged, of packs that are whole
        self._needed: dict[str, set[str]] = {}  # packs, and the backups that need them
        self.report = Verification()
        self._read_before = IdTable()  # frames
        self._broken: dict[tuple[str, int], str] = {}  # frames, and why
        self._pool = ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="verify")
        self._bad: dict[tuple[str, str, int | None], tuple[str, set[str]]] = {}  # what, name, offset: why, backups

    def verify(self, manifest: BackupManifest) -> None:
        """Read all of one backup, and note what is damaged."""
        harmed = False
        for disk in manifest.disks:
            try:
                tree = Tree(self._keys, self._chunks.read, disk)
                for ids in _parts(self._walk(tree)):
                    harmed |= self._check(manifest.id, ids)
            except DriverFailed as error:
                harmed = True
                where = error.details.get("pack"), error.details.get("offset")
                name = str(where[0] or error.details.get("chunk") or disk.name)
                self._note("pack" if where[0] else "index", name, where[1], error.message, manifest.id)
        (self.report.damaged if harmed else self.report.sound).append(manifest.id)

    def add(self, damage: Damage) -> None:
        """A backup that can't even be begun: its manifest is damaged."""
        self.report.damaged += damage.backups
        for backup in damage.backups or ("",):
            self._note(damage.what, damage.name, damage.offset, damage.message, backup)

    def finish(self) -> Verification:
        self._pool.shutdown()
        self._read_before.close()
        self._check_indexes()
        self.report.damages = [
            Damage(what=what, name=name, offset=offset, message=why, backups=tuple(sorted(backups - {""})))
            for (what, name, offset), (why, backups) in sorted(self._bad.items(), key=str)
        ]
        return self.report

    def _check_indexes(self) -> None:
        """A damaged index harms no backup, since each pack lists what it holds; but it is reported."""
        missing = {name for what, name, _ in self._bad if what == "pack"}
        for pack, backups in self._needed.items():
            if pack in missing:
                continue
            try:
                self._read_index(pack)
            except (DriverFailed, ObjectMissing) as error:
                what = error.message if isinstance(error, DriverFailed) else f"the index of pack {pack} is missing"
                why = f"{what}, but the pack is whole, so that nothing is lost"
                self.lost_indexes.add(pack)
                for backup in backups:
                    self._note("index", pack, None, why, backup)

    def _walk(self, tree: Tree) -> Iterator[bytes]:
        nodes: list[bytes] = []

        def enter(node: bytes) -> bool:
            nodes.append(node)
            return True

        yield from tree.walk(enter)
        yield from nodes

    def _check(self, backup: str, ids: list[bytes]) -> bool:
        """Whether one of these chunks can't be read."""
        spots = self._catalogue.find(list(set(ids)))
        self._read_all(copy for copies in spots.values() for copy in copies)
        harmed = False
        for id_ in set(ids):
            copies = spots.get(id_, [])
            if not copies:
                self._note("chunk", id_.hex(), None, "no pack has this chunk", backup)
            for copy in copies:
                self._needed.setdefault(copy.pack, set()).add(backup)
                if why := self._broken.get((copy.pack, copy.frame.offset)):
                    self._note("pack", copy.pack, copy.frame.offset, why, backup)
            harmed |= all((copy.pack, copy.frame.offset) in self._broken for copy in copies)
        return harmed

    def _read_all(self, spots: Iterable[Spot]) -> None:
        fresh = {(spot.pack, spot.frame.offset): spot for spot in spots}
        waiting: deque[tuple[tuple[str, int], Spot, Future[str | None]]] = deque()

        def take() -> None:
            place, spot, future = waiting.popleft()
            if why := future.result():
                self._broken[place] = why
            self.report.chunks += len(spot.frame.ids)
            self.report.bytes += spot.frame.length

        for place, spot in sorted(fresh.items()):
            if self._read_before.add(f"{place[0]} {place[1]}".encode()):
                waiting.append((place, spot, self._pool.submit(self._read, spot)))
            if len(waiting) > _AHEAD:
                take()
        while waiting:
            take()

    def _read(self, spot: Spot) -> str | None:
        try:
            plain = self._chunks.read_frame(spot)
        except ObjectMissing:
            return f"pack {spot.pack} is missing"
        except DriverFailed as error:
            return error.message
        for place, id_ in enumerate(spot.frame.ids):
            chunk = plain[place * CHUNK : (place + 1) * CHUNK]
            if id_ not in (self._keys.chunk_id(chunk), self._keys.node_id(chunk)):
                return f"pack {spot.pack} holds another chunk than its index says at byte {spot.frame.offset}"
        return None

    def _note(self, what: str, name: str, offset: int | None, why: str, backup: str) -> None:
        self._bad.setdefault((what, name, offset), (why, set()))[1].add(backup)


def unreadable(backup: str, error: WeftError) -> Damage:
    return Damage(what="manifest", name=backup, message=error.message, backups=(backup,))


def _parts(ids: Iterator[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    for id_ in ids:
        part.append(id_)
        if len(part) == _LOOKUP:
            yield part
            part = []
    if part:
        yield part
