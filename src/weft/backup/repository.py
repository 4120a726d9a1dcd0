"""The repository: create it, open it, write, list, read, verify, clean up. docs/reference/backup-format.md has its format."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType

import msgspec

from weft.backup.cleanup import GRACE_SECONDS, Cleanup, CleanupReport, keep_in_trash, read_state
from weft.backup.condemned import avoided_packs, mark_damaged
from weft.backup.errors import (
    ObjectMissing,
    header_lost,
    is_full,
    other_repository,
    repository_exists,
    repository_full,
)
from weft.backup.format import (
    HEADER,
    BackupManifest,
    decode_index,
    decode_manifest,
    manifest_altered,
    pack_cut,
)
from weft.backup.header import Header, find_header, has_header, holds_backups, keep_header, make_header
from weft.backup.index.catalogue import Catalogue, mend_indexes
from weft.backup.index.tree import Tree
from weft.backup.key import RepositoryKey
from weft.backup.lease import CleanupLock, Lease, list_leases
from weft.backup.packs import ChunkReader
from weft.backup.reader import BackupReader
from weft.backup.retention import Retention
from weft.backup.storage.contract import Storage, list_own
from weft.backup.storage.place import open_place
from weft.backup.storage.reserve import give_up_reserve, keep_reserve
from weft.backup.usage import Usage, measure
from weft.backup.verify import Damage, Verification, Verifier, unreadable
from weft.backup.writer import BackupWriter
from weft.contracts.clock import Clock
from weft.objects.errors import BackupAltered, Forbidden, NotFound, Unavailable


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A list of the backups, the oldest first; ``damages`` has one entry for each whose manifest can't be read."""

    backups: list[BackupManifest]
    damages: list[Damage]


class Repository:
    """Any thread may call. Several processes may have it open; writers go on beside each other and beside a clean-up."""

    def __init__(self, storage: Storage, header: Header, key: RepositoryKey, clock: Clock, cache: Path) -> None:
        self.id, self.url, self.immutable = header.id, storage.url, storage.locks
        self._storage, self._header, self._key, self._clock = storage, header, key, clock
        self._keys = key.keys_of(header.id)
        self._catalogue = Catalogue(cache / f"{header.id}.db", storage, self._keys)
        self._chunks = ChunkReader(storage, self._keys, self._catalogue, self._refresh)

    @classmethod
    def create(
        cls,
        url: str,
        key: RepositoryKey,
        *,
        clock: Clock,
        cache: Path,
        credentials: tuple[str, str] | None = None,
    ) -> Repository:
        """A new repository in a place that is there and has none. Raises AlreadyExists, Forbidden, Unavailable, InvalidInput."""
        return cls.create_in(open_place(url, credentials), key, clock=clock, cache=cache)

    @classmethod
    def create_in(cls, storage: Storage, key: RepositoryKey, *, clock: Clock, cache: Path) -> Repository:
        """The same. Raises BackupAltered where backups lie whose header is gone: with another id nobody could read them."""
        if holds_backups(storage):
            raise repository_exists(storage.url) if has_header(storage) else header_lost(storage.url)
        identity = secrets.token_hex(16)
        header = make_header(identity, key.keys_of(identity), clock.now())
        try:
            storage.put(HEADER, msgspec.json.encode(header), exclusive=True)
        except FileExistsError:
            raise repository_exists(storage.url) from None
        return cls.open_in(storage, key, clock=clock, cache=cache, expected=identity)

    @classmethod
    def open(
        cls,
        url: str,
        key: RepositoryKey,
        *,
        clock: Clock,
        cache: Path,
        expected: str | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> Repository:
        """The repository at ``url``, with its catalogue in the folder ``cache``, brought up to date; ``expected`` is the id that
        it must have. Raises NotFound, Forbidden (of another key, another repository, a newer weft), Unavailable, BackupAltered."""
        return cls.open_in(open_place(url, credentials), key, clock=clock, cache=cache, expected=expected)

    @classmethod
    def open_in(
        cls, storage: Storage, key: RepositoryKey, *, clock: Clock, cache: Path, expected: str | None = None
    ) -> Repository:
        """The same. Where its header is lost, what ``expected`` or a catalogue in ``cache`` says is tried."""

        def list_ids() -> list[str]:
            return [expected] if expected is not None else sorted(path.stem for path in cache.glob("*.db"))

        header = find_header(storage, key, list_ids, clock.now())
        if expected is not None and header.id != expected:
            raise other_repository(storage.url, expected, header.id)
        return cls(storage, header, key, clock, cache)

    def close(self) -> None:
        self._catalogue.close()

    def write(self, previous: str | None = None, keep_until: float | None = None) -> BackupWriter:
        """A writer with a lease; leave it with ``with``. It may build on backup ``previous``, which is kept until it has ended.
        ``keep_until`` (Unix seconds): nobody can delete the backup before, where the place can lock. Raises NotFound."""
        lease = Lease(self._storage, self._clock, "backup", (previous,) if previous else ())
        try:
            manifest = self.backup(previous) if previous else None
            avoided = avoided_packs(self._storage)
            self._refresh()
            avoided |= self._catalogue.cut()
            self._mend_indexes(avoided)
            retention = Retention(self._storage, self._catalogue, keep_until)
            return BackupWriter(
                self._storage,
                self._keys,
                self._catalogue,
                self._chunks,
                self._clock,
                lease,
                avoided,
                manifest,
                retention,
            )
        except BaseException:
            lease.end()
            raise

    def backups(self) -> Listing:
        manifests, damages = [], []
        for found in list(list_own(self._storage, "backups/")):
            name = found.key.removeprefix("backups/")
            try:
                manifests.append(self._manifest(name, found.version))
            except BackupAltered as error:
                damages.append(unreadable(name, error))
            except ObjectMissing:
                continue  # deleted since
        return Listing(backups=sorted(manifests, key=lambda one: (one.created, one.id)), damages=damages)

    def backup(self, name: str) -> BackupManifest:
        """Raises NotFound, BackupAltered."""
        found = next((one for one in list_own(self._storage, "backups/") if one.key == f"backups/{name}"), None)
        try:
            if found is None:
                raise ObjectMissing(name)
            return self._manifest(name, found.version)
        except ObjectMissing:
            raise NotFound(
                f"the backup repository {self.url} has no backup {name}", hint="list the backups that it has"
            ) from None

    def read(self, backup: str) -> BackupReader:
        """A reader with a lease; leave it with ``with``. Raises NotFound, BackupAltered."""
        try:
            lease = Lease(self._storage, self._clock, "read", (backup,))
        except Forbidden:
            lease = None  # mounted read-only: who cleans up elsewhere can't know of this reader
        try:
            manifest = self.backup(backup)
            self._refresh()
            return BackupReader(self._keys, self._chunks, manifest, lease)
        except BaseException:
            if lease:
                lease.end()
            raise

    def verify(self, backups: Iterable[str] | None = None) -> Verification:
        """Read and decrypt all that these backups need, or all backups. The next backup stores again what a damaged pack has; the
        index of a whole pack that is missing or damaged is among the damages, harms no backup, and is written again."""
        verifier = Verifier(self._keys, self._catalogue, self._chunks, self._read_index)
        try:
            if backups is None:
                listing = self.backups()
                names = [manifest.id for manifest in listing.backups]
            else:
                listing, names = Listing(backups=[], damages=[]), list(backups)
            for damage in listing.damages:
                verifier.add(damage)
            self._chunks.forget_frames()
            for name in names:
                try:
                    with self.read(name) as reader:
                        self._read_manifest(name)  # what the catalogue has of it proves nothing of the repository
                        verifier.verify(reader.manifest)
                except BackupAltered as error:
                    verifier.add(unreadable(name, error))
            for pack in sorted(self._catalogue.cut()):  # which backups need it isn't known
                verifier.add(Damage(what="pack", name=pack, message=pack_cut(pack).message))
        finally:
            report = verifier.finish()
        self._catalogue.lost_indexes(verifier.lost_indexes)
        try:
            mark_damaged(self._storage, (one.name for one in report.damages if one.what == "pack"))
            if verifier.lost_indexes and not self._storage.locks:  # what can be locked counts as it was written first
                with Lease(self._storage, self._clock, "backup"):
                    self._mend_indexes(avoided_packs(self._storage))
        except Forbidden:
            pass  # mounted read-only
        except Unavailable as problem:
            if not is_full(problem):
                raise
        return report

    def _mend_indexes(self, avoided: set[str]) -> None:
        """Mend the indexes, for a holder of a lease: no clean-up deletes a pack that isn't ``avoided`` before that ends."""
        mend_indexes(self._catalogue, self._storage, self._keys, lambda pack: pack not in avoided)

    def _read_manifest(self, name: str) -> None:
        """Raises BackupAltered if what the repository has of it is missing or damaged."""
        found = next((one for one in list_own(self._storage, "backups/") if one.key == f"backups/{name}"), None)
        try:
            decode_manifest(
                self._keys, name, self._storage.get(f"backups/{name}", version=found.version if found else "")
            )
        except ObjectMissing as error:
            raise manifest_altered(name) from error

    def _read_index(self, pack: str) -> None:
        """Raises DriverFailed if what the repository has of it is damaged, ObjectMissing."""
        decode_index(self._keys, pack, self._storage.get(f"index/{pack}"))

    def usage(self) -> dict[str, Usage]:
        """Usage by backup."""
        self._refresh()
        return measure(self._keys, self._catalogue, self._chunks, self.backups().backups)

    def prune(
        self, remove: Collection[str] = (), *, grace: float = GRACE_SECONDS, missing: Collection[str] = ()
    ) -> CleanupReport:
        """Delete the backups ``remove``, and packs that nobody has needed for ``grace`` seconds and since an earlier run. Raises
        InUse if another clean-up runs; BackupAltered or Unavailable, and deletes no pack, if not all backups can be read.
        ``missing``: backups that are gone or damaged, which is accepted. The header, and its copy, are written first where they
        are missing or damaged."""
        keep_header(self._storage, self._key, self._header)
        lock = self._lock(remove)
        try:
            report = Cleanup(self._storage, self._keys, self._catalogue, self._chunks, self._clock, lock).run(
                remove, grace, missing
            )
        except Unavailable as problem:
            if is_full(problem):
                give_up_reserve(self._storage)  # so that the lock can be released
            raise
        finally:
            lock.release()
        keep_reserve(self._storage)  # last: the lock is written once more
        return report

    def _lock(self, remove: Collection[str]) -> CleanupLock:
        """Lock the repository for a clean-up. In a full repository the reserve makes place for it. Where there is none, the
        manifests of backups that it deletes make some for the next time."""
        if not keep_reserve(self._storage):
            for name in remove:
                self._storage.delete(f"backups/{name}")
                keep_in_trash(self._storage, name)
            raise repository_full(self._storage.url, "not even some small files can be written, which a clean-up needs")
        try:
            return CleanupLock(self._storage, self._clock)
        except Unavailable as problem:
            if not is_full(problem):
                raise
        give_up_reserve(self._storage)
        return CleanupLock(self._storage, self._clock)

    def recall(self, label: str, value: str) -> str | None:
        """The id of the backup that had this label when the last clean-up, or this node, saw it: it may be damaged, or missing.
        None: there is none, or it was deleted. Raises BackupAltered."""
        for name, labels in read_state(self._storage).labels.items():
            if labels.get(label) == value and self._knows(name):
                return name
        for name, sealed in self._catalogue.manifests():
            with contextlib.suppress(BackupAltered):
                if decode_manifest(self._keys, name, sealed).labels.get(label) == value and self._knows(name):
                    return name
        return None

    def _knows(self, name: str) -> bool:
        """Whether a backup is there, damaged or not, or clean-ups miss it. Raises BackupAltered."""
        if any(one.key == f"backups/{name}" for one in list_own(self._storage, "backups/")):
            return True
        trash = (one.key.removeprefix("trash/") for one in list_own(self._storage, "trash/"))
        return name in read_state(self._storage).backups and name not in trash

    def locked_until(self, backup: str) -> float:
        """The time until which nobody can delete it, in Unix seconds; 0: it isn't locked."""
        return self._storage.retain(f"backups/{backup}", "", 0) if self.immutable else 0.0

    def retain(self, backup: str, until: float) -> float:
        """Lock a backup, and before it all that it needs, until ``until`` or longer; gives until when it is locked. Raises
        NotFound, InvalidInput (the place can't lock), Unavailable."""
        with Lease(self._storage, self._clock, "backup", (backup,)):
            manifest = self.backup(backup)
            self._refresh()
            retention = Retention(self._storage, self._catalogue, until)
            retention.extend(Tree(self._keys, self._chunks.read, disk) for disk in manifest.disks)
            locked = self._storage.retain(f"backups/{backup}", "", until)
        if locked < until:
            raise Unavailable(f"the server of {self.url} did not lock the backup for as long as it was asked to")
        return locked

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refresh(self) -> None:
        self._catalogue.refresh(set(list_leases(self._storage)))

    def _manifest(self, name: str, version: str) -> BackupManifest:
        sealed = self._catalogue.manifest(name)
        if sealed is None:
            sealed = self._storage.get(f"backups/{name}", version=version)
            manifest = decode_manifest(self._keys, name, sealed)
            self._catalogue.keep_manifest(name, sealed)
            return manifest
        return decode_manifest(self._keys, name, sealed)
