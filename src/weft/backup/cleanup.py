"""Delete backups, and then what none needs: mark and sweep, without counts that one lost update would spoil.

A pack is condemned first and deleted by a later run, once each lease that may not have seen the condemnation has ended and the
pack is still not needed. Each act may be repeated, and kill -9 between any two of them loses nothing."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import msgspec

from weft.backup.condemned import DAMAGED, Condemned, damaged_packs, read_condemned, write_condemned
from weft.backup.errors import ObjectMissing, is_full
from weft.backup.format import CHUNK, FRAME_CHUNKS, BackupManifest, decode_manifest
from weft.backup.index.catalogue import Catalogue, Pack, Spot, lease_of, mend_indexes, refuse_if_cut
from weft.backup.index.id_table import IdTable
from weft.backup.index.tree import Tree
from weft.backup.key import Keys
from weft.backup.lease import EXPIRY_SECONDS, CleanupLock, Lease, LeaseRecord, list_leases
from weft.backup.packs import ChunkReader, PackWriter
from weft.backup.storage.contract import Storage, list_own
from weft.contracts.clock import Clock
from weft.objects.errors import BackupAltered, Unavailable

GRACE_SECONDS = 86400.0
_STATE = "clean-up/state"
_SPARSE = 0.5  # of a pack's chunks that have to be needed, or they are copied


class State(msgspec.Struct, kw_only=True):
    """State of the last run: backups that vanish although nobody deleted them stop the next one."""

    run: int = 0
    backups: list[str] = []
    labels: dict[str, dict[str, str]] = {}  # of each of them: by these one is found whose manifest is gone or damaged
    leases: dict[str, int] = {}  # their counts
    uploads: list[str] = []  # that nobody could be asked about: they are dropped when they are there again


class CleanupReport(msgspec.Struct, kw_only=True):
    deleted_backups: list[str] = []
    locked_backups: list[str] = []  # that may not be deleted yet
    condemned_packs: int = 0  # by this run
    waiting_packs: int = 0  # condemned, and deleted by a later run
    deleted_packs: int = 0
    copied_packs: int = 0  # less than half of them was needed, which lies in new packs now
    freed_bytes: int = 0
    locked_waste: int = 0  # bytes of packs that nothing needs and that are locked


class Cleanup:
    def __init__(
        self, storage: Storage, keys: Keys, catalogue: Catalogue, chunks: ChunkReader, clock: Clock, lock: CleanupLock
    ) -> None:
        self._storage, self._keys, self._catalogue, self._chunks = storage, keys, catalogue, chunks
        self._clock, self._lock = clock, lock
        self.report = CleanupReport()

    def run(self, remove: Collection[str], grace: float, missing: Collection[str]) -> CleanupReport:
        """Delete the backups ``remove`` and sweep. ``missing``: backups that somebody deleted by hand, which is accepted."""
        state = read_state(self._storage)
        state.run += 1
        self._lock.check()
        condemned = read_condemned(self._storage)  # before the leases: who comes later has seen them
        self._put_into_trash(remove, set(missing) & set(state.backups))
        before = list_leases(self._storage)
        self._catalogue.refresh(set(before))
        refuse_if_cut(self._catalogue)
        leases = list_leases(self._storage)  # after the packs: the writer of a new one is here, or its backup below
        pins = {pin for lease in leases.values() if lease for pin in lease.pins}
        unknown_pins = any(lease is None for lease in leases.values())
        backups = self._names("backups/")
        trash = self._names("trash/")
        empty = {found.key.removeprefix("trash/") for found in list_own(self._storage, "trash/") if not found.size}
        self._refuse_if_incomplete(state, backups, trash, missing)
        with IdTable() as live:
            labels = {name: self._mark(f"backups/{name}", name, live).labels for name in sorted(backups)}
            for name in sorted((trash if unknown_pins else trash & pins) - empty):
                self._mark(f"trash/{name}", name, live)
            avoided = {pack for one in condemned.values() for pack in one.packs} | damaged_packs(self._storage)
            needed, sparse = self._find_needed(live, avoided, leases)
            mend_indexes(self._catalogue, self._storage, self._keys, needed.__contains__)
            needed -= self._copy_sparse(sparse, live)
        self._sweep(condemned, needed, set(before) | set(leases), grace)
        counts = self._end_leases(state, leases)
        uploads = self._storage.drop_uploads(set(before) | set(leases), set(state.uploads))
        state = State(run=state.run, backups=sorted(backups), labels=labels, leases=counts, uploads=sorted(uploads))
        self._lock.check()
        self._storage.put(_STATE, msgspec.json.encode(state))
        for name in sorted(set() if unknown_pins else trash - pins):
            self._storage.delete(f"trash/{name}")
        return self.report

    def _put_into_trash(self, remove: Collection[str], missing: Collection[str]) -> None:
        """Those that are ``missing``, too: should this run end early, the next one knows that this was accepted."""
        for name in sorted(remove):
            try:
                sealed = self._storage.get(f"backups/{name}")
            except ObjectMissing:
                if name in missing:
                    keep_in_trash(self._storage, name)
                continue
            try:
                until = decode_manifest(self._keys, name, sealed).keep_until or 0.0
            except BackupAltered:  # nobody can restore it
                sealed, until = b"", 0.0
            if self._storage.locks:  # it may be locked for longer than it was at first
                until = max(until, self._storage.retain(f"backups/{name}", "", 0))
            if until and until > self._clock.now() + self._storage.clock_offset():
                self.report.locked_backups.append(name)
                continue
            self._lock.check()
            keep_in_trash(self._storage, name, sealed)
            self._storage.delete(f"backups/{name}")
            self.report.deleted_backups.append(name)

    def _refuse_if_incomplete(self, state: State, backups: set[str], trash: set[str], missing: Collection[str]) -> None:
        if vanished := sorted(set(state.backups) - backups - trash - set(missing)):
            raise Unavailable(
                f"{self._storage.url} does not list backup {vanished[0]}, which nobody deleted with weft",
                reason="repositoryIncomplete",
                details={"backups": vanished},
                hint="nothing was cleaned up: the storage may be an old copy or answer in part; if the backup was deleted by hand, "
                "delete it with weft backup delete, too; where it isn't listed, remove the object clean-up/state",
            )

    def _mark(self, key: str, name: str, live: IdTable) -> BackupManifest:
        """Add all that a backup needs. Whatever can't be read ends the run: nothing is deleted then."""
        try:
            manifest = self._read_manifest(key, name)
        except ObjectMissing as error:
            raise Unavailable(
                f"backup {name} vanished from {self._storage.url} while it was read",
                hint="nothing was cleaned up; try again",
            ) from error
        for disk in manifest.disks:
            for id_ in Tree(self._keys, self._chunks.read, disk).walk(live.add):
                live.add(id_)
        return manifest

    def _read_manifest(self, key: str, name: str) -> BackupManifest:
        """One that is damaged is written again where this node remembers it. Raises BackupAltered, ObjectMissing."""
        try:
            return decode_manifest(self._keys, name, self._storage.get(key))
        except BackupAltered:
            sealed = self._catalogue.manifest(name)
            if sealed is None or self._storage.locks:
                raise
        manifest = decode_manifest(self._keys, name, sealed)
        self._lock.check()
        self._storage.put(key, sealed)
        return manifest

    def _find_needed(
        self, live: IdTable, avoided: set[str], leases: dict[str, LeaseRecord | None]
    ) -> tuple[set[str], list[tuple[str, int]]]:
        """Packs that have the only copy of a needed chunk, or the one that counts: that in the newest pack which isn't
        ``avoided``. Those of them that are mostly not needed, with the number of their claim in ``live``."""
        needed, sparse = set(), []
        packs = sorted(self._catalogue.packs(), key=lambda pack: (pack.name not in avoided, pack.name), reverse=True)
        for number, pack in enumerate(packs, 2):
            total = count = 0
            for frame in self._catalogue.frames(pack.name):
                total += len(frame.ids)
                count += live.take(frame.ids, number)
            if count:
                needed.add(pack.name)
            if 0 < count < total * _SPARSE and lease_of(pack.name) not in leases and not self._locked(pack):
                sparse.append((pack.name, number))
        return needed, sparse

    def _copy_sparse(self, sparse: list[tuple[str, int]], live: IdTable) -> set[str]:
        """Copy what is needed of these packs into new ones; those that could be copied aren't needed any more."""
        if not sparse:
            return set()
        copied = set()
        with Lease(self._storage, self._clock, "clean-up") as lease, ThreadPoolExecutor(2) as pool:
            writer = PackWriter(
                self._storage, self._keys, self._catalogue, pool, (self._lock.token, lease.id), None, ahead=4
            )
            try:
                for name, number in sparse:
                    self._lock.check()
                    if self._copy(name, number, live, writer):
                        copied.add(name)
                writer.close_pack()
                lease.check()
            finally:
                writer.abandon()
        self.report.copied_packs = len(copied)
        return copied

    def _copy(self, name: str, number: int, live: IdTable, writer: PackWriter) -> bool:
        version = next(pack.version for pack in self._catalogue.packs() if pack.name == name)
        ids: list[bytes] = []
        chunks: list[bytes] = []
        for frame in self._catalogue.frames(name):
            wanted = live.among(frame.ids, number)
            if not wanted:
                continue
            try:
                plain = self._chunks.read_frame(Spot(name, version, frame, 0))
            except (BackupAltered, ObjectMissing):
                return False  # what can be read of it stays where it is
            for place, id_ in enumerate(frame.ids):
                if id_ in wanted:
                    ids.append(id_)
                    chunks.append(plain[place * CHUNK : (place + 1) * CHUNK])
                if len(ids) == FRAME_CHUNKS:
                    writer.add(ids, chunks)
                    ids, chunks = [], []
        if ids:
            writer.add(ids, chunks)
        return True

    def _sweep(self, condemned: dict[str, Condemned], needed: set[str], active: set[str], grace: float) -> None:
        packs = {pack.name: pack for pack in self._catalogue.packs()}
        useless = {name for name in packs.keys() - needed if lease_of(name) not in active}
        fresh, cut_off = set(useless), []
        for key, one in condemned.items():
            if one.observers is None:
                cut_off.append(key)
                continue
            rest = [name for name in one.packs if name in useless]
            fresh -= set(rest)
            if not active & set(one.observers) and self._clock.now() - one.at >= grace:
                rest = [name for name in rest if not self._delete(packs[name])]
            self.report.waiting_packs += len(rest)
            if rest != one.packs:
                write_condemned(self._storage, key, Condemned(at=one.at, packs=rest, observers=one.observers))
        locked = {name for name in fresh if self._locked(packs[name])}
        fresh -= locked  # until then they may be built on
        self.report.locked_waste = sum(packs[name].size for name in locked)
        self._lock.check()
        if fresh:
            key = f"condemned/{self._lock.token:08d}"
            one = Condemned(at=self._clock.now(), packs=sorted(fresh))
            write_condemned(self._storage, key, one)
            one.observers = sorted(list_leases(self._storage))  # those who come after this have seen the list
            write_condemned(self._storage, key, one)
        for key in cut_off:
            self._storage.delete(key)
        self.report.condemned_packs = len(fresh)

    def _delete(self, pack: Pack) -> bool:
        if self._locked(pack):
            return False
        self._lock.check()
        self._storage.delete(f"index/{pack.name}")  # first: an index without its pack would promise chunks
        self._storage.delete(f"packs/{pack.name}")
        self._storage.delete(f"{DAMAGED}{pack.name}")
        self._catalogue.forget(pack.name)
        self.report.deleted_packs += 1
        self.report.freed_bytes += pack.size
        return True

    def _locked(self, pack: Pack) -> bool:
        if not self._storage.locks:
            return False
        now = self._clock.now() + self._storage.clock_offset()
        until = pack.locked_until
        if until <= now:
            try:
                until = self._storage.retain(f"packs/{pack.name}", pack.version, 0)  # others may have extended it
            except ObjectMissing:
                return False
            self._catalogue.locked(pack.name, until)
        return until > now

    def _end_leases(self, state: State, leases: dict[str, LeaseRecord | None]) -> dict[str, int]:
        """End those of holders that died: no renewal since the last run, and long ago by the clock. Gives the others' counts."""
        counts = {}
        for name, lease in leases.items():
            count = lease.count if lease else -1
            old = lease is None or abs(self._clock.now() - lease.renewed) > EXPIRY_SECONDS
            if old and state.leases.get(name) == count:
                self._lock.check()
                self._storage.delete(f"leases/{name}")
            else:
                counts[name] = count
        return counts

    def _names(self, prefix: str) -> set[str]:
        return {found.key.removeprefix(prefix) for found in list_own(self._storage, prefix)}


def keep_in_trash(storage: Storage, name: str, sealed: bytes = b"") -> None:
    """The manifest is for those who read the backup. Empty, where it is damaged or all is full, it says that the backup was
    deleted; who reads it then is an observer of what is condemned."""
    try:
        storage.put(f"trash/{name}", sealed)
    except Unavailable as problem:
        if not sealed or not is_full(problem):
            raise
        storage.put(f"trash/{name}", b"")


def read_state(storage: Storage) -> State:
    """Raises BackupAltered."""
    try:
        return msgspec.json.decode(storage.get(_STATE), type=State)
    except ObjectMissing:
        return State()
    except msgspec.MsgspecError as error:
        raise BackupAltered(
            f"the notes of the last clean-up in {storage.url} are damaged",
            hint=f"check that all backups are listed, then delete the object {_STATE}",
        ) from error
