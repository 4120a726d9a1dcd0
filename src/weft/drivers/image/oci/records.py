"""A node's records of its images, ``<state>/oci/images/<digest>.json``: written last, when all of an image is here.

Who may have an image without its registry being asked: those whose credentials opened it here before. Who may have its layers as
parts of another image: those who have had the image, and everybody, if its registry gives it to everybody. They are kept as keyed
digests, and the key is beside them, where only root reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from weft.contracts.driver.image import OciImage, RegistryCredentials
from weft.contracts.durable_file import sync_folder, write_durably
from weft.objects.image.reference import ImageReference

PUBLIC = "public"


class Record(msgspec.Struct):
    """``digests`` of the indexes it was found in; ``openers``: marks of who may have it; ``holders``: of who has its layers;
    ``used``: unix seconds."""

    image: OciImage
    digests: list[str] = []
    openers: list[str] = []
    holders: list[str] = []
    used: float = 0.0


class Records:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob(".*.json.*"):
            left.unlink(missing_ok=True)
        self._key = _key(folder / "key")
        self._known: dict[str, Record] = {}
        for path in folder.glob("sha256-*.json"):
            with contextlib.suppress(msgspec.DecodeError):
                record = msgspec.json.decode(path.read_bytes(), type=Record)
                self._known[record.image.digest] = record

    def all(self) -> list[Record]:
        return list(self._known.values())

    def find(self, digest: str) -> Record | None:
        """Find a record by its manifest's digest, or an index's."""
        if digest in self._known:
            return self._known[digest]
        return next((record for record in self._known.values() if digest in record.digests), None)

    def mark(self, reference: ImageReference, credentials: RegistryCredentials | None) -> str:
        """A mark of these credentials at this place."""
        place = f"{reference.registry}/{reference.name}" if reference.place == "registry" else reference.path
        known = credentials or RegistryCredentials()
        text = "\0".join((place, known.username, known.password, known.token))
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=16).hexdigest()

    def holder(self, reference: ImageReference, credentials: RegistryCredentials | None) -> str:
        """A mark of those who pull with these credentials, whatever image; PUBLIC for images that a registry gives to everybody."""
        if reference.place != "registry":
            return self.mark(reference, credentials)
        if credentials is None or credentials == RegistryCredentials():
            return PUBLIC
        return self.mark(msgspec.structs.replace(reference, name=""), credentials)

    def has_layer(self, diff_id: str, holder: str) -> bool:
        """Whether ``holder`` has had an image with this layer."""
        return any(
            diff_id in record.image.layers and (holder in record.holders or PUBLIC in record.holders)
            for record in self._known.values()
        )

    def keep(self, record: Record) -> None:
        write_durably(self._path(record.image.digest), msgspec.json.encode(record))
        self._known[record.image.digest] = record

    def drop(self, digest: str) -> None:
        self._known.pop(digest, None)
        self._path(digest).unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.replace(':', '-')}.json"


def _key(path: Path) -> bytes:
    if not path.exists():
        write_durably(path, os.urandom(32))
    return path.read_bytes()
