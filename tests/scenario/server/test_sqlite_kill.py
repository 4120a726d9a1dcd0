"""``kill -9`` at any moment: what was acknowledged is there, whole; what was not is there whole or not at all."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

from weft.store.sqlite import SqliteStore

KILLS = 12

WRITER = """
import asyncio, sys
from weft.contracts.store import Put
from weft.store.sqlite import SqliteStore

async def main(path, life):
    store = SqliteStore(path, keep_revisions=2_000)
    await store.open()
    async def write(task):
        n = 0
        while True:
            n += 1
            name = f"/life/{life}/{task}-{n}"
            writes = [Put(f"{name}/{part}", b"x" * 700) for part in "abc"]
            revision = await store.commit([*writes, Put(f"/newest/{task}", name.encode())], idempotency_key=name)
            sys.stdout.write(f"{revision} {name}\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(task) for task in range(5)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


def write_until_killed(path: Path, life: int, chance: random.Random) -> dict[str, int]:
    """Run a writing process, kill it after a random number of acknowledgements; those it gave, as name → revision."""
    acknowledged: dict[str, int] = {}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(life)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        enough = chance.randrange(1, 600)
        for count, line in enumerate(process.stdout):
            if count == enough:
                process.kill()
            # what was acknowledged before the kill took effect counts too, but for a line cut in two
            if line.endswith(b"\n"):
                revision, name = line.decode().split()
                acknowledged[name] = int(revision)
    return acknowledged


async def test_a_killed_writer_loses_nothing_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    chance = random.Random(2)
    acknowledged: dict[str, int] = {}
    for life in range(KILLS):
        acknowledged |= await asyncio.to_thread(write_until_killed, path, life, chance)
        store = SqliteStore(path, keep_revisions=2_000)
        await store.open()
        parts: dict[str, dict[str, int]] = {}
        page = await store.list("/life/")
        for entry in page.entries:
            name, _, part = entry.key.rpartition("/")
            parts.setdefault(name, {})[part] = entry.revision
        for name, revisions in parts.items():
            assert set(revisions) == {"a", "b", "c"} and len(set(revisions.values())) == 1, name
        for name, revision in acknowledged.items():
            assert parts[name]["a"] == revision
        # A name that was acknowledged is known by its idempotency key too.
        name, revision = max(acknowledged.items(), key=lambda item: item[1])
        assert await store.commit([], idempotency_key=name) == revision
        # The log says the same as the list: every revision, in order.
        epoch, _, newest = page.cursor.partition(":")
        since = max(0, int(newest) - 1_500)
        logged = []
        async with asyncio.timeout(20), aclosing(store.watch("/life/", f"{epoch}:{since}")) as watch:
            while len(logged) < int(newest) - since:
                batch = await anext(watch)
                assert len(batch.changes) == 3
                logged.append(batch.revision)
        assert logged == list(range(since + 1, int(newest) + 1))
        await store.close()
    assert len(acknowledged) > KILLS
