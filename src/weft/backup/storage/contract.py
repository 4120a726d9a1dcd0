"""The contract of the place where a repository lies. Keys are paths of plain words; every call is done when it returns, and
durably, unless it is told that this doesn't matter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

_ID, _PACK = "[0-9a-f]+", "[0-9]{8,}-[0-9a-f]+-[0-9]{6,}"
_OWN = re.compile(
    f"(backups|trash|leases)/{_ID}|(packs|index|damaged)/{_PACK}|locks/[0-9]{{8,}}-{_ID}|condemned/[0-9]{{8,}}"
)


class Stored(NamedTuple):
    key: str
    size: int  # bytes
    version: str = ""  # where the place keeps versions: the one that was written first


class Upload(Protocol):
    """An object on its way: nobody sees it before ``commit``, and nothing of it stays after ``abandon`` or a crash's clean-up."""

    def write(self, data: bytes) -> None: ...

    def commit(self, retain_until: float | None = None) -> str:
        """Make the object visible, whole, and give its version."""

    def abandon(self) -> None: ...


class Storage(Protocol):
    """All calls may raise the errors of ``backup/errors.py``: full, read-only, unreachable. Any thread may call."""

    url: str
    locks: bool  # whether objects can be locked until a time, against everybody
    fills_up: bool = False  # whether it can be so full that not even a small object can be written

    def put(
        self,
        key: str,
        data: bytes,
        *,
        exclusive: bool = False,
        retain_until: float | None = None,
        durable: bool = True,
    ) -> str:
        """Write or replace an object in one step; give its version. ``exclusive``: raises FileExistsError if there is one. Without
        ``durable`` a power cut may take it back or leave it empty."""

    def begin(self, key: str, owner: str) -> Upload:
        """Start an object of many bytes for the lease ``owner``."""

    def get(self, key: str, offset: int = 0, length: int | None = None, version: str = "") -> bytes:
        """Bytes of an object, fewer at its end. Raises ObjectMissing."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """All objects below ``prefix`` (a folder, with its slash), in any order; of a folder its files alone."""

    def delete(self, key: str, version: str = "", *, durable: bool = True) -> None:
        """Remove an object; one that is gone already is removed. Without ``durable`` a power cut may bring it back."""

    def drop_uploads(self, owners: set[str], seen: set[str]) -> set[str]:
        """Remove what uploads of leases other than ``owners`` left, and of nobody's those in ``seen``; name the rest of these."""

    def retain(self, key: str, version: str, until: float) -> float:
        """Lock a version until ``until`` (Unix seconds) or longer, and give what the place says when asked again; 0: never."""

    def clock_offset(self) -> float:
        """Seconds by which the place's clock is ahead of this machine's; 0 where it has none of its own."""


def list_own(storage: Storage, prefix: str) -> Iterator[Stored]:
    """List the objects below ``prefix`` that have a name that weft gives: others put files beside them, as servers and desktops do
    (``.DS_Store``, ``desktop.ini``, ``.nfs0001``)."""
    return (found for found in storage.list(prefix) if _OWN.fullmatch(found.key))
