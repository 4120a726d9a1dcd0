"""Two real databases for metrics: what one lacks is found by the moments, copied, and the same after another copy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tests.scenario.metrics_lab import OwnDatabase, fetch

from weft.contracts.clock import SystemClock
from weft.objects.errors import Unavailable
from weft.telemetry.metrics.database import Asker
from weft.telemetry.metrics.moments import (
    LATE_SECONDS,
    Moment,
    list_missing,
    mark_moment,
    pack_samples,
    read_moments,
    unpack_samples,
)
from weft.telemetry.metrics.sample import Sample

NODES = 20


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[OwnDatabase, OwnDatabase]]:
    made = [OwnDatabase(tmp_path / name) for name in ("one", "two")]
    yield made[0], made[1]
    for one in made:
        one.close()


def record(database: OwnDatabase, *moments: int) -> None:
    """Each with a sample of each node, half a minute older than the recording, as a node's heartbeat may be."""
    for at in moments:
        ups = [Sample("weft_node_up", (("node", f"n{n}"),), at - 30_000, at / 1000) for n in range(NODES)]
        database.send([*ups, mark_moment(at, NODES)])


def read_samples(database: OwnDatabase, start: float, end: float) -> list[str]:
    form = urlencode({"match[]": '{__name__=~"weft_.*"}', "start": start, "end": end}).encode()
    lines = [json.loads(line) for line in fetch(database.find(), "/api/v1/export", form).splitlines()]
    return sorted(
        f"{line['metric']} {at} {value}"
        for line in lines
        for at, value in zip(line["timestamps"], line["values"], strict=True)
    )


def test_a_history_gets_the_moments_that_another_one_has_and_no_sample_twice(
    two: tuple[OwnDatabase, OwnDatabase],
) -> None:
    one, other = two
    now = int(time.time()) * 1000
    all_ = [now - 10_000 * back for back in range(12, 2, -1)]
    start, end = now / 1000 - 300, now / 1000
    record(one, *all_)
    record(other, *all_[:3], *all_[7:])
    asker = Asker(SystemClock(), 2)

    async def copy(doubtful: tuple[float, float] = (0.0, 0.0)) -> list[list[Moment]]:
        own = await read_moments(asker, other.find(), start, end)
        theirs = await read_moments(asker, one.find(), start, end)
        runs = list(list_missing(own, theirs, doubtful, 30))
        for run in runs:
            first, last = run[0].at / 1000 - LATE_SECONDS, run[-1].at / 1000
            packed = await pack_samples(asker, one.find(), first, last)
            await unpack_samples(asker, other.find(), packed, run)
        return runs

    assert read_samples(other, start, end) != read_samples(one, start, end)
    runs = asyncio.run(copy())
    assert [[moment.at for moment in run] for run in runs] == [all_[3:7]]
    fetch(other.find(), "/internal/force_flush")
    assert read_samples(other, start, end) == read_samples(one, start, end)
    assert asyncio.run(copy()) == []
    # What was written in the last seconds of a database that was killed may be there in part.
    assert len(asyncio.run(copy((all_[5] / 1000, now / 1000)))) == 2
    fetch(other.find(), "/internal/force_flush")
    assert read_samples(other, start, end) == read_samples(one, start, end)
    asker.close()


@pytest.mark.parametrize("packed", [b"garbage", b"\x1f\x8bgarbage"])
def test_what_is_no_copy_is_refused_and_its_moments_stay_missing(tmp_path: Path, packed: bytes) -> None:
    own = OwnDatabase(tmp_path / "server")
    asker, now = Asker(SystemClock(), 1), time.time()

    async def unpack() -> list[Moment]:
        with pytest.raises(Unavailable):
            await unpack_samples(asker, own.find(), packed, [Moment(int(now * 1000), 5)])
        return await read_moments(asker, own.find(), now - 60, now + 60)

    assert asyncio.run(unpack()) == []
    asker.close()
    own.close()
