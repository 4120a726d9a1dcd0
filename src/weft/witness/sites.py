"""The sites that a witness serves: the SHA-256 of each one's secret, in one file that people change by commands. A running witness
reads it again when it changes, so a site that was removed is refused from its next request on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from weft.contracts.durable_file import write_durably
from weft.objects.errors import AlreadyExists, InvalidInput, NotFound, Unavailable
from weft.objects.identity import check_name
from weft.protocol.failover.claim import Name

FILE = "sites.json"
MOST_SITES = 50  # as many groups as these may have fit into the witness's file
MOST_FILE_BYTES = 64 << 10
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class SiteFile:
    """The file of sites in the witness's folder ``state``, which is there."""

    def __init__(self, state: Path) -> None:
        self._state, self._path = state, state / FILE
        self._seen: tuple[int, int, int] | None = None

    def has_changed(self) -> bool:
        """Whether the file has changed since ``read``."""
        return self._find_mark() != self._seen

    def read(self) -> dict[str, str]:
        """The SHA-256 (hex) of each site's secret, by its name. Raises Unavailable."""
        mark = self._find_mark()  # before it is read: what is written meanwhile is read again
        sites = self._load()
        self._seen = mark
        return sites

    def add(self, name: str) -> str:
        """The new site's secret, which is nowhere else. Raises AlreadyExists, InvalidInput for a wrong name or one too many."""
        check_name(name, "name")
        with self.locked():
            sites = self._load()
            if name in sites:
                raise AlreadyExists(
                    f"site {name} is there already",
                    hint=f"a new secret for it: weft witness remove-site {name}, then add-site again",
                )
            if len(sites) >= MOST_SITES:
                raise InvalidInput(f"a witness serves at most {MOST_SITES} sites", field="name")
            secret = secrets.token_hex(32)
            self._save({**sites, name: hashlib.sha256(secret.encode()).hexdigest()})
        return secret

    def remove(self, name: str) -> None:
        """Raises NotFound."""
        with self.locked():
            sites = self._load()
            if name not in sites:
                raise NotFound(f"there is no site {name[:63]!r}", hint=f"it has {', '.join(sorted(sites)) or 'none'}")
            del sites[name]
            self._save(sites)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes what the folder has of sites and certificates."""
        descriptor = os.open(self._state / "sites.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _find_mark(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _load(self) -> dict[str, str]:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(MOST_FILE_BYTES), type=dict[Name, Digest])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise Unavailable(f"{self._path} can't be read: {type(problem).__name__}") from problem

    def _save(self, sites: Mapping[str, str]) -> None:
        try:
            write_durably(self._path, msgspec.json.format(msgspec.json.encode(dict(sites)), indent=1))
        except OSError as problem:
            raise Unavailable(f"{self._path} can't be written: {problem.strerror or problem}") from problem
