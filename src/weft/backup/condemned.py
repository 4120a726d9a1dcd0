"""Packs that writers must not build on: those that a clean-up will delete, in a list for each run of it, and those with damage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from weft.backup.errors import ObjectMissing
from weft.backup.storage.contract import Storage, list_own

DAMAGED = "damaged/"  # and the pack's name: an empty object


class Condemned(msgspec.Struct, kw_only=True):
    """``observers`` are the leases that were there once the list was: they may not have seen it. None: it was cut off."""

    at: float
    packs: list[str]
    observers: list[str] | None = None


def read_condemned(storage: Storage) -> dict[str, Condemned]:
    """All lists, by key. One that can't be read raises: what it names isn't known."""
    return dict(_read(storage))


def avoided_packs(storage: Storage) -> set[str]:
    """Packs on which a writer whose lease is there must not build: it stores those chunks again."""
    condemned = {pack for one in read_condemned(storage).values() for pack in one.packs}
    return condemned | damaged_packs(storage)


def damaged_packs(storage: Storage) -> set[str]:
    """Those in which damage was found. Their whole chunks are read as long as they are the only copies."""
    return {found.key.removeprefix(DAMAGED) for found in list_own(storage, DAMAGED)}


def mark_damaged(storage: Storage, packs: Iterable[str]) -> None:
    for pack in sorted(set(packs) - damaged_packs(storage)):
        storage.put(f"{DAMAGED}{pack}", b"")


def write_condemned(storage: Storage, key: str, condemned: Condemned) -> None:
    if condemned.packs:
        storage.put(key, msgspec.json.encode(condemned))
    else:
        storage.delete(key)


def _read(storage: Storage) -> Iterator[tuple[str, Condemned]]:
    for found in list_own(storage, "condemned/"):
        try:
            yield found.key, msgspec.json.decode(storage.get(found.key), type=Condemned)
        except ObjectMissing:
            continue
