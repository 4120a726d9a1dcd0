"""Packs that a clean-up will delete: one list for each run of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from weft.backup.errors import ObjectMissing
from weft.backup.storage.contract import Storage


class Condemned(msgspec.Struct, kw_only=True):
    """``observers`` are the leases that were there once the list was: they may not have seen it. None: it was cut off."""

    at: float
    packs: list[str]
    observers: list[str] | None = None


def read_condemned(storage: Storage) -> dict[str, Condemned]:
    """All lists, by key. One that can't be read raises: what it names isn't known."""
    return dict(_read(storage))


def condemned_packs(storage: Storage) -> set[str]:
    """What a writer whose lease is there must not build on."""
    return {pack for one in read_condemned(storage).values() for pack in one.packs}


def write_condemned(storage: Storage, key: str, condemned: Condemned) -> None:
    if condemned.packs:
        storage.put(key, msgspec.json.encode(condemned))
    else:
        storage.delete(key)


def _read(storage: Storage) -> Iterator[tuple[str, Condemned]]:
    for found in storage.list("condemned/"):
        try:
            yield found.key, msgspec.json.decode(storage.get(found.key), type=Condemned)
        except ObjectMissing:
            continue
