"""A repository in a temporary folder, disks in memory, time that tests set, and a storage that stops like a killed process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from weft.backup.errors import repository_full
from weft.backup.format import CHUNK, BackupManifest
from weft.backup.key import RepositoryKey
from weft.backup.repository import Repository
from weft.backup.storage.contract import Storage, Stored, Upload
from weft.backup.storage.directory import DirectoryStorage

KEY = RepositoryKey.generate()
DAY = 86400.0
BLOCK = 4096


class Time:
    def __init__(self) -> None:
        self.at = 1_000_000_000.0

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Killed(BaseException):
    """The process ended here."""


class Mortal(Storage):
    """Passes calls on; the ``left``-th that changes something ends the process, before or after it is done."""

    def __init__(self, inner: Storage, left: int | None = None, done: bool = False) -> None:
        self.inner, self.left, self.done = inner, left, done
        self.url, self.locks = inner.url, inner.locks
        self.count = 0

    def _act(self, act: object) -> object:
        self.count += 1
        if self.left is not None and self.count >= self.left:
            if self.count == self.left and self.done:
                act()  # type: ignore[operator]
            raise Killed
        return act()  # type: ignore[operator]

    def put(
        self,
        key: str,
        data: bytes,
        *,
        exclusive: bool = False,
        retain_until: float | None = None,
        durable: bool = True,
    ) -> str:
        words = {"exclusive": exclusive, "retain_until": retain_until, "durable": durable}
        return str(self._act(lambda: self.inner.put(key, data, **words)))

    def begin(self, key: str, owner: str) -> Upload:
        return MortalUpload(self, self.inner.begin(key, owner))

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        return self.inner.get(key, offset, length, version)

    def list(self, prefix: str) -> Iterator[Stored]:
        return self.inner.list(prefix)

    def delete(self, key: str, version: str = "", *, durable: bool = True) -> None:
        self._act(lambda: self.inner.delete(key, version, durable=durable))

    def drop_uploads(self, owners: set[str], seen: set[str]) -> set[str]:
        return self._act(lambda: self.inner.drop_uploads(owners, seen))  # type: ignore[return-value]

    def retain(self, key: str, version: str, until: float) -> float:
        return self.inner.retain(key, version, until)

    def clock_offset(self) -> float:
        return 0.0


class Full(DirectoryStorage):
    """A folder on a file system that has ``left`` blocks; what replaces a file lies beside it for a moment. Packs count not."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.left = 1 << 20

    def put(
        self,
        key: str,
        data: bytes,
        *,
        exclusive: bool = False,
        retain_until: float | None = None,
        durable: bool = True,
    ) -> str:
        need = -(-len(data) // BLOCK)
        if need > self.left:
            raise repository_full(self.url, "No space left on device")
        self.left += self._blocks(key) - need
        return super().put(key, data, exclusive=exclusive, retain_until=retain_until, durable=durable)

    def delete(self, key: str, version: str = "", *, durable: bool = True) -> None:
        self.left += self._blocks(key)
        super().delete(key, version, durable=durable)

    def _blocks(self, key: str) -> int:
        path = self.root / key
        return -(-path.stat().st_size // BLOCK) if path.exists() else 0


class MortalUpload(Upload):
    def __init__(self, storage: Mortal, inner: Upload) -> None:
        self.storage, self.inner = storage, inner

    def write(self, data: bytes) -> None:
        self.storage._act(lambda: self.inner.write(data))

    def commit(self, retain_until: float | None = None) -> str:
        return str(self.storage._act(lambda: self.inner.commit(retain_until)))

    def abandon(self) -> None:
        if self.storage.left is None or self.storage.count < self.storage.left:
            self.inner.abandon()


class Lab:
    def __init__(self, folder: Path) -> None:
        self.place, self.cache, self.clock = folder / "place", folder / "cache", Time()
        self.place.mkdir(parents=True)
        self.repo = Repository.create(f"dir://{self.place}", KEY, clock=self.clock, cache=self.cache)

    def open(self, cache: str = "other", storage: Storage | None = None) -> Repository:
        """Another process's."""
        return Repository.open_in(
            storage or DirectoryStorage(self.place), KEY, clock=self.clock, cache=self.cache.parent / cache
        )

    def packs(self) -> list[Path]:
        return sorted((self.place / "packs").iterdir())


def store(
    repo: Repository, data: bytes, changes: list[tuple[int, int, bool]] | None = None, on: str | None = None
) -> BackupManifest:
    with repo.write(previous=on) as writer:
        writer.disk("root", len(data), lambda at, n: data[at : at + n], changes, "root" if on else None)
        return writer.publish(kind="vm", name="web", spec={"cpu": 2})


def load(repo: Repository, backup: BackupManifest) -> bytes:
    with repo.read(backup.id) as reader:
        return reader.read("root", 0, backup.disks[0].size)


def random_chunks(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(count * CHUNK)
