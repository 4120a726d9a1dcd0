"""Usage of each backup: how much only it holds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weft.backup.format import CHUNK, BackupManifest
from weft.backup.index.catalogue import Catalogue
from weft.backup.index.id_table import IdTable
from weft.backup.index.tree import Tree
from weft.backup.key import Keys
from weft.backup.packs import ChunkReader


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """``bytes``: its disks' sizes. ``used_bytes``: of them those that aren't holes. ``stored_bytes``: what it added when it was
    made. ``unique_bytes``: what deleting it, and no other, would free."""

    bytes: int
    used_bytes: int
    stored_bytes: int
    unique_bytes: int


def measure(
    keys: Keys, catalogue: Catalogue, chunks: ChunkReader, manifests: Iterable[BackupManifest]
) -> dict[str, Usage]:
    """Measure the usage by backup. Reads all their indexes, what they share only twice."""
    manifests = list(manifests)
    with IdTable() as owners:
        for number, manifest in enumerate(manifests, 1):
            for disk in manifest.disks:
                own = _Owner(owners, number)
                for id_ in Tree(keys, chunks.read, disk).walk(own.enter):
                    own.enter(id_)
        unique = [0.0] * (len(manifests) + 1)
        for ids in owners.owned():
            spots = catalogue.find([id_ for id_, _ in ids])
            for id_, number in ids:
                if copies := spots.get(id_):
                    unique[number] += copies[0].frame.length / len(copies[0].frame.ids)
    return {manifest.id: find_usage(manifest, round(unique[number])) for number, manifest in enumerate(manifests, 1)}


def find_usage(manifest: BackupManifest, unique_bytes: int) -> Usage:
    """All but what only it holds says its manifest."""
    return Usage(
        bytes=manifest.bytes,
        used_bytes=min(manifest.bytes, sum(disk.stored_chunks for disk in manifest.disks) * CHUNK),
        stored_bytes=manifest.stored_bytes,
        unique_bytes=unique_bytes,
    )


class _Owner:
    def __init__(self, table: IdTable, number: int) -> None:
        self._table, self._number = table, number

    def enter(self, id_: bytes) -> bool:
        """Note that this backup has it; whether what is below it may still change hands."""
        before = self._table.claim(id_, self._number)
        return before not in (self._number, IdTable.SHARED)
