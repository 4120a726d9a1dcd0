"""Backups of the server in a backup repository, beside those of guests: encrypted with its key, what changed since is stored.

For ``weft server backup dir:///srv/backups --key-file KEY``. It needs no server: the repository and its key are enough.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

from weft.backup.format import BackupManifest
from weft.backup.key import RepositoryKey
from weft.backup.repository import Repository
from weft.client.small_file import read_small
from weft.contracts.clock import Clock
from weft.objects.errors import InvalidInput, NotFound

KIND, DISK = "server", "file"
SCHEMES = ("dir://", "s3://")
_STEP = 1 << 20


def is_repository(place: str) -> bool:
    return place.startswith(SCHEMES)


class ServerBackups:
    """Those in the repository at ``url``; its key is in the file ``key_file``, as ``weft backuprepository key`` prints it. A
    bucket's credentials are those that boto3 finds."""

    def __init__(self, url: str, key_file: Path | None, clock: Clock) -> None:
        if key_file is None:
            raise InvalidInput(
                f"{url} is a backup repository, whose key is needed",
                field="--key-file",
                hint="give --key-file FILE with what weft backuprepository key NAME prints",
            )
        self.url, self._clock = url, clock
        self._key = RepositoryKey(_read_key(key_file))

    def put(self, file: Path, name: str, keep: float, *, immutable: bool = False) -> BackupManifest:
        """Store ``file``, and remove those that are older than ``keep`` seconds (0: none), but not this one. ``immutable``: nobody
        can delete it before that."""
        if immutable and not keep:
            raise InvalidInput(
                "--immutable takes the time that the backup is kept", field="--immutable", hint="give --keep 30d, too"
            )
        until = float(math.ceil(self._clock.now() + keep)) if immutable else None
        with tempfile.TemporaryDirectory() as cache, self._open(Path(cache)) as repository:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with repository.write(None, until) as writer:
                    size = os.fstat(descriptor).st_size
                    writer.disk(DISK, size, lambda at, length: os.pread(descriptor, length, at).ljust(length, b"\0"))
                    made = writer.publish(kind=KIND, name=name, labels={"taken": name})
            finally:
                os.close(descriptor)
            oldest = self._clock.now() - keep
            old = [one.id for one in _list(repository) if keep and one.created < oldest and one.id != made.id]
            if old:
                repository.prune(old)
        return made

    def get(self, name: str, file: Path) -> BackupManifest:
        """Write the one called ``name`` to ``file``, the newest if that is empty. Raises NotFound."""
        with tempfile.TemporaryDirectory() as cache, self._open(Path(cache)) as repository:
            there = _list(repository)
            found = next((one for one in there[::-1] if name in ("", one.name)), None)
            if found is None:
                names = ", ".join(one.name for one in there[-10:]) or "none"
                what = f"no backup {name} of a server" if name else "no backup of a server"
                raise NotFound(f"{self.url} has {what}", hint=f"it has: {names}")
            with repository.read(found.id) as reader, file.open("wb") as out:
                size = found.bytes
                for at in range(0, size, _STEP):
                    out.write(reader.read(DISK, at, min(_STEP, size - at)))
        return found

    def _open(self, cache: Path) -> Repository:
        return Repository.open(self.url, self._key, clock=self._clock, cache=cache)


def _list(repository: Repository) -> list[BackupManifest]:
    """Oldest first."""
    return sorted((one for one in repository.backups().backups if one.kind == KIND), key=lambda one: one.created)


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(read_small(path).strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidInput(f"{path} holds no key", field="--key-file", hint="it has 64 hexadecimal digits")
    return key
