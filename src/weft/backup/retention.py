"""How long a backup's objects are locked, where the place can lock. The unit is the pack; locks are only ever extended."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from weft.backup.errors import clocks_differ
from weft.backup.format import CHUNK, HEADER, DiskIndex
from weft.backup.index.catalogue import Catalogue
from weft.backup.index.tree import Tree, count_chunks
from weft.backup.storage.contract import Storage
from weft.objects.errors import DriverFailed, InvalidInput, Unavailable, WeftError

_STEP = 7 * 86400.0  # locks end on multiples of it, so that daily backups don't extend every pack each day
_CLOCK_LIMIT = 300.0
_LOOKUP = 256


def check_clock(storage: Storage) -> None:
    """Raises Unavailable if the place's clock and this machine's are too far apart."""
    offset = storage.clock_offset()
    if abs(offset) > _CLOCK_LIMIT:
        raise clocks_differ(storage.url, offset)


class Retention:
    """The lock that one backup needs. Without ``keep_until`` everything is covered and nothing is done."""

    def __init__(self, storage: Storage, catalogue: Catalogue, keep_until: float | None) -> None:
        self._storage, self._catalogue, self.keep_until = storage, catalogue, keep_until
        self.until = None if keep_until is None else -(-keep_until // _STEP) * _STEP
        self._covered: dict[str, bool] = {}
        self._packs = {pack.name: pack for pack in catalogue.packs()} if self.until else {}
        if keep_until is None:
            return
        if not storage.locks:
            raise InvalidInput(
                f"{storage.url} can't lock backups",
                field="keep_until",
                hint="use a bucket that was created with Object Lock, or keep backups there without a lock",
            )
        check_clock(storage)

    def covers(self, pack: str) -> bool:
        """Whether the pack is locked for long enough, now that it was extended and read back. False: store the chunk again."""
        if self.until is None:
            return True
        if pack not in self._covered:
            self._covered[pack] = self._extend(pack)
        return self._covered[pack]

    def widen(
        self, ranges: Iterable[tuple[int, int, bool]], tree: Tree, old: DiskIndex, size: int, avoided: Collection[str]
    ) -> Iterable[tuple[int, int, bool]]:
        """Add to the changes the chunks that only packs have which are ``avoided`` or can't be locked: they are read and stored
        again."""
        if self.until is None and not avoided:
            return ranges
        lost = []
        number, count = 0, count_chunks(min(old.size, size))
        ids = list(tree.ids(0, count))
        for start in range(0, count, _LOOKUP):
            part = ids[start : start + _LOOKUP]
            spots = self._catalogue.find(list(set(part)))
            for number, id_ in enumerate(part, start):
                if any(id_) and not any(
                    spot.pack not in avoided and self.covers(spot.pack) for spot in spots.get(id_, [])
                ):
                    lost.append((number * CHUNK, min(CHUNK, size - number * CHUNK), False))
        return sorted([*ranges, *lost]) if lost else ranges

    def extend(self, trees: Iterable[Tree]) -> None:
        """Lock every pack that these disks refer to, and the header, without which nobody can read them. Raises Unavailable, and
        the backup is not published then."""
        if self.until is None:
            return
        self._lock_header(self.until)
        for tree in trees:
            seen: set[bytes] = set()

            def enter(node: bytes, seen: set[bytes] = seen) -> bool:
                self._need([node])
                fresh = node not in seen
                seen.add(node)
                return fresh

            part: list[bytes] = []
            for id_ in tree.walk(enter):
                part.append(id_)
                if len(part) == _LOOKUP:
                    self._need(part)
                    part = []
            self._need(part)

    def _lock_header(self, until: float) -> None:
        if self._storage.retain(HEADER, "", 0) >= until:
            return
        try:
            locked = self._storage.retain(HEADER, "", until)
        except (WeftError, DriverFailed):
            locked = 0.0
        if locked < until:  # a version of its own: it becomes the first if somebody deletes the one before
            self._storage.put(HEADER, self._storage.get(HEADER), retain_until=until)

    def _need(self, ids: list[bytes]) -> None:
        spots = self._catalogue.find(list(set(ids)))
        for id_ in ids:
            if not any(self.covers(spot.pack) for spot in spots.get(id_, [])):
                raise Unavailable(
                    f"a pack of the backup in {self._storage.url} can't be locked until it may be deleted",
                    hint="allow weft s3:PutObjectRetention and s3:GetObjectRetention, or take a full backup",
                )

    def _extend(self, name: str) -> bool:
        pack = self._packs.get(name)
        if pack is None:
            pack = next((one for one in self._catalogue.packs() if one.name == name), None)
        if pack is None:
            return False
        until = self.until or 0.0
        if pack.locked_until >= until:
            return True
        try:
            locked = self._storage.retain(f"packs/{name}", pack.version, until)
            index = next((found for found in self._storage.list(f"index/{name}")), None)
            if index is not None:
                self._storage.retain(index.key, index.version, until)
        except (WeftError, DriverFailed):
            return False
        self._catalogue.locked(name, locked)
        return locked >= until
