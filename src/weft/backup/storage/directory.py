"""A repository in a folder: a disk, a mounted share. Not immutable: root deletes what it likes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from weft.backup.errors import ObjectMissing, read_only, repository_full, unreachable
from weft.backup.storage.contract import Storage, Stored, Upload
from weft.contracts.durable_file import keep_file, name_file, sync_folder
from weft.objects.errors import WeftError

_UPLOADS = "tmp"
_NOBODY = "put"  # the owner of objects that are written in one go
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class DirectoryStorage(Storage):
    """Objects are files of the same path below ``root``, which has to be there."""

    locks, fills_up = False, True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"dir://{root}"
        self._identity = _identify(root)

    def put(
        self,
        key: str,
        data: bytes,
        *,
        exclusive: bool = False,
        retain_until: float | None = None,
        durable: bool = True,
    ) -> str:
        upload = _FileUpload(self, key, _NOBODY)
        upload.write(data)
        upload.finish(exclusive, durable)
        return ""

    def begin(self, key: str, owner: str) -> Upload:
        return _FileUpload(self, key, owner)

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        try:
            with (self.root / key).open("rb", buffering=0) as file:
                if length is None:
                    file.seek(offset)
                    return file.read()
                return os.pread(file.fileno(), length, offset)
        except (FileNotFoundError, NotADirectoryError) as error:
            self.be_there()
            raise ObjectMissing(key) from error
        except OSError as error:
            raise self.explain(error) from error

    def list(self, prefix: str) -> Iterator[Stored]:
        try:
            with os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                        if not entry.is_file():  # such as @eaDir, which some servers put into every folder
                            continue
                        yield Stored(prefix + entry.name, entry.stat().st_size)
        except FileNotFoundError:
            self.be_there()
        except OSError as error:
            raise self.explain(error) from error

    def delete(self, key: str, version: str = "", *, durable: bool = True) -> None:
        path = self.root / key
        try:
            path.unlink()
            if durable:
                sync_folder(path.parent)
        except FileNotFoundError:
            self.be_there()
        except OSError as error:
            raise self.explain(error) from error

    def drop_uploads(self, owners: set[str], seen: set[str]) -> set[str]:
        rest = set()
        for stored in self.list(f"{_UPLOADS}/"):
            owner = stored.key.removeprefix(f"{_UPLOADS}/").split(".")[0]
            if stored.key in seen or owner not in {_NOBODY, *owners}:
                self.delete(stored.key)
            elif owner == _NOBODY:
                rest.add(stored.key)
        return rest

    def retain(self, key: str, version: str, until: float) -> float:
        return 0.0

    def clock_offset(self) -> float:
        return 0.0

    def explain(self, error: OSError) -> WeftError:
        if error.errno in _FULL:
            return repository_full(self.url, error.strerror)
        if error.errno in _READ_ONLY:
            return read_only(self.url, error.strerror)
        return self._find_gone() or unreachable(self.url, error.strerror)

    def be_there(self) -> None:
        """Raises Unavailable if the folder is gone, or is another one since its file system was unmounted: what is written there
        would lie beneath the mount."""
        if (gone := self._find_gone()) is not None:
            raise gone

    def _find_gone(self) -> WeftError | None:
        if not self.root.is_dir():
            return unreachable(self.url, "the folder is gone")
        if _identify(self.root) != self._identity:
            return unreachable(self.url, "the folder is another one than before: its file system was unmounted")
        return None


def _identify(folder: Path) -> tuple[int, int] | None:
    """Identify a folder of a mounted file system; None: there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _FileUpload(Upload):
    """A file in ``tmp/`` until it has its name. Its own begins with its owner's."""

    def __init__(self, storage: DirectoryStorage, key: str, owner: str) -> None:
        self._storage, self._path = storage, storage.root / key
        self._work = storage.root / _UPLOADS / f"{owner}.{secrets.token_hex(8)}"
        storage.be_there()
        try:
            for folder in (self._work.parent, self._path.parent):
                self._make(folder)
            self._file: BinaryIO = self._work.open("wb", buffering=0)
        except OSError as error:
            raise storage.explain(error) from error

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.abandon()
            raise self._storage.explain(error) from error

    def commit(self, retain_until: float | None = None) -> str:
        self.finish(exclusive=False)
        return ""

    def finish(self, exclusive: bool, durable: bool = True) -> None:
        """Give the file its name. Raises FileExistsError if ``exclusive`` and there is one."""
        try:
            self._file.close()
            if exclusive and self._path.exists():
                raise FileExistsError(self._path)
            if exclusive:
                mine = self._work.stat().st_ino
                name_file(self._work, self._path)  # whichever of two comes first stays
                if self._path.stat().st_ino != mine:
                    raise FileExistsError(self._path)
            elif durable:
                keep_file(self._work, self._path)
            else:
                self._work.replace(self._path)
        except FileExistsError:
            self.abandon()
            raise
        except OSError as error:
            self.abandon()
            raise self._storage.explain(error) from error

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # the next clean-up removes it
            self._file.close()
            self._work.unlink(missing_ok=True)

    def _make(self, folder: Path) -> None:
        """The folder, durably; never the repository's root, which may be a mount that is away."""
        if folder == self._storage.root or folder.is_dir():
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
