"""Measures the usage of this node's guests: CPU as a smoothed average, memory and disk as they are.

Reads each guest's counters from the runtime every few seconds; samples stay here, and each report carries the result. Wakes
the reporter when the result has changed so far that placement should know.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from pathlib import Path

import msgspec

from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.runtimes import Driver, Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import GuestFacts, GuestStats
from weft.kinds.allocation import ROOT, AllocationSpec
from weft.objects.errors import WeftError
from weft.protocol.heartbeat import Digest, Use, add_up, make_digest, total

log = logging.getLogger("weft.agent")
SAMPLE_SECONDS = 5.0
SMOOTHING_SECONDS = 30.0
SETTLED_SECONDS = 5.0  # a shorter measurement is not relied on
BOOT_SECONDS = 60.0  # after this a guest that hasn't answered is measured too
DISK_SECONDS = 30.0
STALE_SECONDS = 20.0
CHANGED_SHARE = 0.1  # of the node's cores


class Reading(msgspec.Struct, frozen=True):
    """A guest's CPU at the last sample."""

    cpu_seconds: float  # the counter
    at: float  # when it was read, in elapsed seconds
    since: float  # when the measurement began
    cores: float = 0.0  # the smoothed average


def fold_reading(former: Reading | None, cpu_seconds: float, at: float) -> Reading:
    """``former`` with a new sample. During the first SMOOTHING_SECONDS the average is plain; a counter that went back is another
    run of the guest."""
    if former is None or cpu_seconds < former.cpu_seconds:
        return Reading(cpu_seconds, at, at)
    passed = at - former.at
    if passed <= 0.0:
        return former
    weight = max(1.0 - math.exp(-passed / SMOOTHING_SECONDS), passed / (at - former.since))
    cores = former.cores + weight * ((cpu_seconds - former.cpu_seconds) / passed - former.cores)
    return Reading(cpu_seconds, at, former.since, cores)


class Meter:
    """Measures the guests of ``table``, and those that no allocation explains. ``news`` is set when ``digest`` should be reported
    at once."""

    def __init__(
        self,
        host: Host,
        runtimes: Runtimes,
        pools: Pools,
        clock: Clock,
        table: AllocationTable,
        news: asyncio.Event,
    ) -> None:
        self._runtimes, self._pools, self._clock, self._table, self._news = runtimes, pools, clock, table, news
        self._images = Path(host.state_dir) / "images"
        self._matters = CHANGED_SHARE * 1000.0 * host.capacity.cpu
        self._readings: dict[str, Reading] = {}  # by guest id
        self._alive_since: dict[str, float] = {}
        self._disks: dict[str, int] = {}
        self._unmade: set[str] = set()  # ids of guests with a missing disk, which is looked for with each sample
        self._disks_at = -math.inf
        self._digest = Digest()
        self._reported = Digest()
        self._sampled_at = -math.inf

    async def keep(self) -> None:
        """Measure for ever; returns at once where no runtime can."""
        if not any(self._runtimes.meter_of(driver) for driver in self._runtimes.all()):
            return
        while True:
            try:
                await self._sample()
            except Exception:  # nothing is reported then, and the agent goes on
                log.exception("can't measure the guests' usage")
            if _differs(self._reported, self._digest, self._matters):
                self._news.set()
            await self._clock.sleep(SAMPLE_SECONDS)

    def digest(self) -> Digest | None:
        """The last measurement; None if it is too old."""
        if self._clock.elapsed() - self._sampled_at > STALE_SECONDS:
            return None
        self._reported = self._digest
        return self._digest

    async def _sample(self) -> None:
        guests, seen = [(state.local, state.guest) for state in self._table], set()
        await self._measure_disks([local for local, _ in guests])
        uses: dict[str, Use] = {}
        for local, facts in guests:
            seen.add(local.id)
            use = await self._measure(self._runtimes.find(local), local.id, facts, self._disks.get(local.id, 0))
            if local.spec.role != "active":  # its usage isn't known yet, or soon isn't this node's
                use = msgspec.structs.replace(use, settled=False)
            elif facts is not None and facts.state in ("stopped", "suspended") and local.spec.desired != "run":
                use = msgspec.structs.replace(use, settled=True)
            uid = local.spec.workload.uid
            uses[uid] = add_up((uses[uid], use)) if uid in uses else use
        others = [Use(disk=self._disks.get("", 0))]
        for stranger in self._table.unexplained():
            seen.add(stranger.id)
            others.append(await self._measure(self._runtimes.find_finder(stranger.id), stranger.id, stranger, 0))
        for id in self._readings.keys() - seen:
            del self._readings[id]
        for id in self._alive_since.keys() - seen:
            del self._alive_since[id]
        self._digest = make_digest(uses, add_up(others))
        self._sampled_at = self._clock.elapsed()

    async def _measure(self, runtime: Driver | None, id: str, facts: GuestFacts | None, disk: int) -> Use:
        stats = await self._read(runtime, id, facts)
        now = self._clock.elapsed()
        if facts is None or stats is None:
            self._readings.pop(id, None)
            self._alive_since.pop(id, None)
            return Use(disk=disk, settled=False)
        alive_since = self._alive_since.setdefault(id, now)
        if facts.ready is False and now - alive_since < BOOT_SECONDS:
            self._readings.pop(id, None)  # booting is not typical of what it will use
            return Use(memory=stats.resident_bytes, disk=disk, settled=False)
        reading = self._readings[id] = fold_reading(self._readings.get(id), stats.cpu_seconds, now)
        settled = reading.at - reading.since >= SETTLED_SECONDS
        return Use(round(reading.cores * 1000), stats.resident_bytes, disk, settled)

    async def _read(self, runtime: Driver | None, id: str, facts: GuestFacts | None) -> GuestStats | None:
        if facts is None or facts.state not in ("running", "paused", "starting"):
            return None
        meter = self._runtimes.meter_of(runtime)
        if meter is None:
            return None
        try:
            return await meter.stats(id, disks=False)
        except WeftError as problem:
            log.debug("guest %s can't be measured: %s", id, problem.message)
            return None  # it has just ended

    async def _measure_disks(self, all_: list[LocalAllocation]) -> None:
        """Measure the files of disks and images: less often, and for new disks at once."""
        now = self._clock.elapsed()
        if now - self._disks_at >= DISK_SECONDS:
            self._disks_at = now
            self._unmade.clear()
            self._disks = {"": _blocks_below(self._images)}
        for local in all_:
            if kind_of(local.spec).has_root_disk and (local.id not in self._disks or local.id in self._unmade):
                ids = {ROOT: local.id} | {volume.uid: volume.uid for volume in local.spec.volumes}
                sizes = [await self._find_size(local.spec, disk, id_) for disk, id_ in ids.items()]
                self._disks[local.id] = sum(size or 0 for size in sizes)
                (self._unmade.add if None in sizes else self._unmade.discard)(local.id)

    async def _find_size(self, spec: AllocationSpec, disk: str, volume: str) -> int | None:
        """Bytes that a volume's files take up; None if it is missing or can't be read."""
        try:
            facts = await self._pools.inspect(spec, volume, disk)
        except (WeftError, OSError) as problem:
            log.debug("volume %s can't be measured: %s", volume, problem)
            return None
        return None if facts is None else facts.used_bytes


def _blocks_below(folder: Path) -> int:
    """Bytes that all files below ``folder`` take up; one that goes meanwhile counts as 0."""
    return sum(_blocks(f"{where}/{name}") for where, folders, files in os.walk(folder) for name in (*folders, *files))


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _differs(reported: Digest, now: Digest, matters: float) -> bool:
    """Whether placement could decide otherwise: another guest is settled, or the node's CPU usage has clearly changed."""
    settled = {uid for uid, use in now.guests.items() if use.settled}
    before = {uid for uid, use in reported.guests.items() if use.settled}
    return settled != before or abs(total(reported).cpu - total(now).cpu) > matters
