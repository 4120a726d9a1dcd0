"""Entries kept in memory never tell an older state than anyone has seen, however few of them fit."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from weft.contracts.store import Delete, Put
from weft.store.sqlite import SqliteStore

KEYS = [f"/vm/default/{n}" for n in range(12)]


@pytest.mark.parametrize("cache_bytes", [0, 2_000, 1_000_000])
async def test_a_read_is_never_older_than_what_was_told_before(tmp_path: Path, cache_bytes: int) -> None:
    store = SqliteStore(tmp_path / "s.db", cache_bytes=cache_bytes)
    await store.open()
    told: dict[str, tuple[int, bytes | None]] = dict.fromkeys(KEYS, (0, None))
    deletes_under_way = dict.fromkeys(KEYS, 0)

    async def write(seed: int) -> None:
        chance = random.Random(seed)
        for count in range(60):
            key = chance.choice(KEYS)
            value = b"%d/%d" % (seed, count)
            deletes = chance.random() < 0.2
            deletes_under_way[key] += deletes
            revision = await store.commit([Delete(key) if deletes else Put(key, value)])
            deletes_under_way[key] -= deletes
            if revision > told[key][0]:
                told[key] = (revision, None if deletes else value)

    async def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            key = chance.choice(KEYS)
            known, value = told[key]
            may_go = deletes_under_way[key] > 0
            if chance.random() < 0.2:
                page = await store.list(key)
                entry = next((e for e in page.entries if e.key == key), None)
            else:
                entry = await store.get(key)
            if entry is None:
                assert value is None or may_go or deletes_under_way[key] or told[key][0] > known
            else:
                assert entry.revision >= known
                told[key] = max(told[key], (entry.revision, entry.value), key=lambda t: t[0])
            await asyncio.sleep(0)

    await asyncio.gather(*[write(seed) for seed in range(4)], *[read(100 + seed) for seed in range(8)])
    for key in KEYS:
        entry = await store.get(key)
        page = await store.list(key)
        assert entry == next((e for e in page.entries if e.key == key), None)
    await store.close()


async def test_what_is_known_to_be_absent_appears_once_it_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    assert await store.get("/vm/default/web") is None
    await store.commit([Put("/vm/default/web", b"1")])
    entry = await store.get("/vm/default/web")
    assert entry is not None and entry.value == b"1"
    await store.commit([Delete("/vm/default/web")])
    assert await store.get("/vm/default/web") is None
    await store.close()
