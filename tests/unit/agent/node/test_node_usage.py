"""The meter, in virtual time: what a guest uses is a smoothed average of its counter, told only once it is worth something."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import make_allocation

from weft.agent.node.usage import (
    BOOT_SECONDS,
    DISK_SECONDS,
    SETTLED_SECONDS,
    STALE_SECONDS,
    Meter,
    Reading,
    fold_reading,
)
from weft.agent.state.allocation import Checkpoint
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Driver, Runtimes
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import GuestFacts, GuestState, GuestStats
from weft.drivers.volume.fake.driver import FakeVolumes
from weft.objects.errors import Unavailable
from weft.protocol.heartbeat import MOST_GUESTS, Digest, Use, make_digest, read_digest, total, write_digest


def fold(samples: list[tuple[float, float]]) -> Reading:
    """Of (elapsed, CPU seconds)."""
    reading = None
    for at, cpu_seconds in samples:
        reading = fold_reading(reading, cpu_seconds, at)
    assert reading is not None
    return reading


def test_a_guest_measured_for_a_short_time_has_its_plain_average() -> None:
    assert fold([(0, 10), (3, 13)]).cores == pytest.approx(1.0)
    assert fold([(0, 10), (3, 13), (6, 13)]).cores == pytest.approx(0.5)
    assert fold([(0, 10)]).cores == 0.0


def test_what_was_long_ago_is_forgotten_and_a_short_burst_counts_for_little() -> None:
    idle = [(float(at), 0.0) for at in range(0, 300, 3)]
    burst = [*idle, (300.0, 3.0)]
    assert 0.05 < fold(burst).cores < 0.15
    busy = [*idle, *((300.0 + 3 * n, 3.0 * n) for n in range(1, 60))]
    assert fold(busy).cores == pytest.approx(1.0, abs=0.01)


def test_a_counter_that_went_back_is_another_run() -> None:
    reading = fold([(0, 100), (3, 103), (6, 1)])
    assert (reading.since, reading.cores) == (6, 0.0)


def test_two_samples_of_one_instant_are_one() -> None:
    assert fold([(0, 1), (3, 4), (3, 4.5)]) == fold([(0, 1), (3, 4)])


def test_a_digest_says_the_same_after_it_was_written_and_nothing_of_what_it_does_not_understand() -> None:
    digest = Digest({"vm-1": Use(1500, 2**30, 5, settled=False)}, Use(disk=7))
    assert read_digest(write_digest(digest)) == digest
    assert read_digest(b"") is None and read_digest(b"\xc1nonsense") is None
    assert total(digest) == Use(1500, 2**30, 12, settled=False)


def test_of_too_many_guests_the_smallest_are_told_together() -> None:
    guests = {f"{n:036d}": Use(n, 2**35, 2**40) for n in range(MOST_GUESTS + 5)}
    digest = make_digest(guests, Use())
    assert len(digest.guests) == MOST_GUESTS and digest.other.cpu == sum(range(5))
    assert total(digest).memory == len(guests) * 2**35
    assert len(write_digest(digest)) < 64_000


class Runtime:
    """Guests whose counters the test moves."""

    name = "hand"

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}

    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        if guest_id not in self.cpu:
            raise Unavailable("it doesn't run")
        return GuestStats(self.cpu[guest_id], 2**28, 0, 0)


class OneRound(Exception):
    """The meter would sleep now."""


class HandClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        raise OneRound


class Foundling(Runtimes):
    """Whose one driver has found every stranger."""

    def find_finder(self, guest_id: str) -> Driver | None:
        return self.machines


class Bench:
    """A meter over guests by hand."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.runtime = HandClock(), Runtime()
        self.table, self.news = AllocationTable(), asyncio.Event()
        self.store = CheckpointStore(str(folder))
        host = Host("n1", "u1", str(folder), str(folder), "wf", "", "", "", Capacity(8.0, 2**34, 2**40))
        self.volumes = FakeVolumes(host, self.clock)
        self.meter = Meter(
            host,
            Foundling({"vm": self.runtime}),  # type: ignore[dict-item]  # that has no more than the meter needs
            Pools(self.volumes, {}, self.clock, asyncio.Event()),
            self.clock,
            self.table,
            self.news,
        )

    def is_woken(self) -> bool:
        """Since the last time."""
        woken = self.news.is_set()
        self.news.clear()
        return woken

    def add(self, name: str, *, ready: bool | None = True, **spec: Any) -> str:
        """A guest that runs; the uid of its workload."""
        allocation = make_allocation(name, **spec)
        state = self.table.states[allocation.uid] = AllocationState(allocation, Checkpoint(), self.store)
        state.guest = make_facts(state.local.id, "running", ready)
        self.runtime.cpu[state.local.id] = 0.0
        return state.local.spec.workload.uid

    async def pass_by(self, seconds: float, cores: float = 0.0) -> None:
        """Let every guest use so many cores for so long, then sample."""
        self.clock.time += seconds
        for id in self.runtime.cpu:
            self.runtime.cpu[id] += cores * seconds
        with pytest.raises(OneRound):
            await self.meter.keep()

    def told(self) -> Digest:
        digest = self.meter.digest()
        assert digest is not None
        return digest


def make_facts(id: str, state: GuestState, ready: bool | None = True) -> GuestFacts:
    return GuestFacts(id, "", "", 1, state, ready)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path)


async def test_a_guest_is_gone_by_once_it_was_measured_for_a_while(bench: Bench) -> None:
    uid = bench.add("web")
    await bench.pass_by(0)
    assert bench.told().guests[uid] == Use(0, 2**28, bench.told().guests[uid].disk, settled=False)
    await bench.pass_by(SETTLED_SECONDS, cores=0.5)
    told = bench.told().guests[uid]
    assert told.settled and told.cpu == 500 and told.memory == 2**28


async def test_what_booting_takes_does_not_count(bench: Bench) -> None:
    uid = bench.add("web", ready=False)
    await bench.pass_by(0)
    await bench.pass_by(20, cores=1.0)
    assert not bench.told().guests[uid].settled and bench.told().guests[uid].cpu == 0
    await bench.pass_by(BOOT_SECONDS, cores=1.0)  # it never answers: taken as it is
    await bench.pass_by(10, cores=1.0)
    assert bench.told().guests[uid].settled and bench.told().guests[uid].cpu == 1000


async def test_only_an_active_place_is_gone_by_and_a_stopped_guest_uses_nothing(bench: Bench) -> None:
    target, stopped = bench.add("migrating", role="target"), bench.add("stopped", desired="stop")
    _, state = bench.table
    state.guest = make_facts(state.local.id, "stopped")
    del bench.runtime.cpu[state.local.id]
    await bench.pass_by(0)
    await bench.pass_by(30, cores=1.0)
    assert not bench.told().guests[target].settled
    assert bench.told().guests[stopped].settled and bench.told().guests[stopped].cpu == 0


async def test_a_guest_that_nothing_explains_counts_with_the_rest(bench: Bench) -> None:
    bench.table.found["stranger"] = make_facts("stranger", "running")
    bench.runtime.cpu["stranger"] = 0.0
    await bench.pass_by(0)
    await bench.pass_by(10, cores=2.0)
    assert bench.told().guests == {} and bench.told().other.cpu == 2000


async def test_what_matters_to_placement_is_told_at_once_and_little_things_are_not(bench: Bench) -> None:
    bench.add("web")
    await bench.pass_by(0)
    bench.told()
    assert not bench.is_woken()
    await bench.pass_by(SETTLED_SECONDS)
    assert bench.is_woken()  # it can be gone by from now on
    bench.told()
    await bench.pass_by(3, cores=0.5)
    assert not bench.is_woken()
    await bench.pass_by(30, cores=2.0)  # more than a tenth of eight cores
    assert bench.is_woken()


async def test_what_can_not_be_measured_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = bench.add("web")

    async def inspect(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(FakeVolumes, "inspect", inspect)
    await bench.pass_by(0)
    assert bench.told().guests[uid].disk == 0

    async def stats(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    monkeypatch.setattr(bench.runtime, "stats", stats)
    await bench.pass_by(STALE_SECONDS + 1)
    assert bench.meter.digest() is None


async def test_what_was_measured_long_ago_is_not_told(bench: Bench) -> None:
    await bench.pass_by(0)
    bench.clock.time += STALE_SECONDS
    assert bench.meter.digest() is not None
    bench.clock.time += 1
    assert bench.meter.digest() is None


async def test_a_disk_that_takes_up_nothing_is_looked_at_once_in_a_while_and_one_in_the_making_at_once(
    bench: Bench,
) -> None:
    bench.add("web")
    (state,) = bench.table
    wanted = state.local
    await bench.pass_by(0)
    await bench.pass_by(5)
    assert bench.volumes.calls == [("inspect", wanted.id)] * 2  # there is none yet
    await bench.volumes.ensure(wanted.id, size_bytes=2**30)
    bench.volumes.calls.clear()
    for _ in range(4):
        await bench.pass_by(5)
    assert bench.volumes.calls == [("inspect", wanted.id)]
    await bench.pass_by(DISK_SECONDS)
    assert bench.volumes.calls == [("inspect", wanted.id)] * 2


async def test_an_image_that_goes_while_the_cache_is_measured_takes_nothing_from_the_rest(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = bench.add("web")
    kept = tmp_path / "images"
    for name in ("one", "other"):
        (kept / name).mkdir(parents=True)
        (kept / name / "disk").write_bytes(b"d" * 100_000)
    look = os.lstat

    def look_and_let_the_other_go(path: Any, **more: Any) -> os.stat_result:
        found = look(path, **more)
        if Path(path).name == "disk":
            shutil.rmtree(kept / ("other" if Path(path).parent.name == "one" else "one"), ignore_errors=True)
        return found

    monkeypatch.setattr(os, "lstat", look_and_let_the_other_go)
    monkeypatch.setattr(Path, "lstat", look_and_let_the_other_go)
    await bench.pass_by(0)
    assert len(list(kept.iterdir())) == 1
    assert uid in bench.told().guests and bench.told().other.disk >= 100_000
