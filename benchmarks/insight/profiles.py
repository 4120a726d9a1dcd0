"""What the profiles of 2,000 guests cost: the controllers that read and write them, the process that does the arithmetic, and the
database. All real but for the guests: their week was drawn and imported."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tests.scenario.metrics_lab import fetch

from benchmarks.insight.drawn import draw
from benchmarks.measurement import Figure
from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.contracts.store import Put
from weft.controllers.profile.controller import BATCH, Profiles
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.profile import ProfileStatus
from weft.kinds.vm import VM, VmSpec
from weft.launch.insight.worker import InsightWorker
from weft.launch.process.limits import bound_free_memory
from weft.launch.process.supervisor import Supervisor, supervising
from weft.launch.server.metrics import plan_database
from weft.objects.envelope import encode_envelope
from weft.objects.errors import WeftError
from weft.store.memory import MemoryStore
from weft.telemetry.metrics.database import Asker, Database, find_database
from weft.telemetry.metrics.history import DatabaseHistory

GUESTS, PROJECTS = 2000, 20
DENSE = 100  # guests with a sample of CPU every ten seconds, as they are; of the others one every five minutes
STEP, DENSE_STEP = 300, 10
HOUR, DAY, MONTH = 3600.0, 86_400.0, 31 * 86_400.0
GOAL_SHARE, GOAL_MIB = 5.0, 60
SEED = 39
_TICKS = os.sysconf("SC_CLK_TCK")


class Later(SystemClock):
    """``ahead`` seconds from now."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Metered(InsightWorker):
    """Adds up what its processes used."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.most_bytes = 0.0, 0

    async def rest(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.seconds += read_cpu(self._process.pid)
            self.most_bytes = max(self.most_bytes, read_memory(self._process.pid, "VmHWM"))
        await super().rest()


class Silent:
    """A journal that keeps nothing."""

    def append(self, event: Event) -> None: ...


def read_cpu(pid: int) -> float:
    """Seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def read_memory(pid: int | str, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def name_guest(number: int) -> tuple[str, str]:
    """Project and name."""
    return f"p{number % PROJECTS:02}" if number >= DENSE else "a", f"g{number:04}"


def draw_series(end: float) -> Iterator[bytes]:
    """Lines for the database: a week of CPU, a day of the rest, the newest value at ``end``."""
    random = np.random.default_rng(SEED)
    week = np.arange(end - 7 * DAY, end, STEP)
    day = week[-int(DAY / STEP) :]
    dense = np.arange(end - 7 * DAY, end, DENSE_STEP)
    for number in range(GUESTS):
        project, name = name_guest(number)
        labels = {"project": project, "kind": "vm", "name": name, "node": f"n{number % 50}"}
        drawn, _ = draw(random)
        drawn = np.nan_to_num(drawn - np.nanmin(drawn))
        cores = 2 * drawn / max(1e-9, float(drawn.max()))
        moments, values = (week, cores) if number >= DENSE else (dense, np.interp(dense, week, cores))
        yield _write("weft_guest_cpu_cores", labels, moments, values)
        yield _write("weft_guest_memory_bytes", labels, day, random.uniform(1e8, 1e9, len(day)))
        for resource_ in ("disk_read", "disk_written", "network_received", "network_sent"):
            extra = {"disk": "root"} if resource_.startswith("disk") else {"nic": "0"}
            counted = np.cumsum(random.exponential(1e6, len(day)))
            yield _write(f"weft_guest_{resource_}_bytes_total", labels | extra, day, counted)


def _write(metric: str, labels: dict[str, str], moments: np.ndarray, values: np.ndarray) -> bytes:
    times = (1000 * moments).astype(np.int64).tolist()
    line = {"metric": {"__name__": metric, **labels}, "values": np.round(values, 3).tolist(), "timestamps": times}
    return json.dumps(line).encode() + b"\n"


def import_series(database: Database, end: float) -> None:
    batch: list[bytes] = []
    for number, line in enumerate(draw_series(end)):
        batch.append(line)
        if number % 100 == 99:
            fetch(database, "/api/v1/import", b"".join(batch))
            batch.clear()
    fetch(database, "/api/v1/import", b"".join(batch))
    fetch(database, "/internal/force_flush")


def measure() -> list[Figure]:
    bound_free_memory(reads_tls=True)  # as the server does, in whose process the controllers are
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        return runner.run(_measure(Path(folder)))


async def _measure(state: Path) -> list[Figure]:
    clock, analyst = Later(), Metered()
    supervisor = Supervisor("metrics", lambda: plan_database(state, MONTH, clock), clock)
    async with supervising([supervisor]):
        await _until_healthy(state)
        await asyncio.to_thread(import_series, find_database(state, None), clock.now() + HOUR)
        process = supervisor._process
        assert process is not None
        store = MemoryStore(clock, keep_revisions=10)  # the real one is another process: here it shares the values
        await store.open()
        for number in range(GUESTS):
            project, name = name_guest(number)
            made = VM.make(name, VmSpec(image="tiny", cpu=2.0, run="stop"), clock.now() - MONTH, project=project)
            await store.commit([Put(made.key, encode_envelope(made))])
        cache = Cache(store, make_view(), clock)
        lease, asker = LeaderLease(store, cache, Silent(), clock, "controllers", "bench"), Asker(clock, 2)
        following = [asyncio.create_task(cache.run())]
        await lease.begin()
        following.append(asyncio.create_task(lease.keep()))
        history = DatabaseHistory(asker, lambda: find_database(state, None))
        profiles = Profiles(lease, history, analyst)
        memory = read_memory("self", "VmRSS")
        searched = await _look(profiles, analyst, process.pid)
        clock.ahead = HOUR
        looked = await _look(profiles, analyst, process.pid)
        grown = max(0, read_memory("self", "VmRSS") - memory)
        items = cache.view.of_kind("workloadprofile").values()
        late = [item for item in items if item.status(ProfileStatus).looked_at < clock.now() - HOUR / 2]
        assert len(items) == GUESTS and not late, f"{len(items)} profiles, {len(late)} of them were not looked at again"
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        asker.close()
    return _describe(searched, looked, analyst.most_bytes, grown)


class Spent(NamedTuple):
    """Seconds of CPU for a look at all."""

    controllers: float
    analyst: float
    database: float  # as if all guests had a sample every ten seconds

    @property
    def total(self) -> float:
        return sum(self)


async def _look(profiles: Profiles, analyst: Metered, database: int) -> Spent:
    own, before = time.process_time(), analyst.seconds
    read = [read_cpu(database)]
    more = True
    while more:
        more = await profiles.step()
        read.append(read_cpu(database))
    dense = read[DENSE // BATCH] - read[0]
    return Spent(time.process_time() - own, analyst.seconds - before, dense * GUESTS / DENSE)


def _describe(searched: Spent, looked: Spent, most: int, grown: int) -> list[Figure]:
    share = 100 * (searched.total + (DAY / HOUR - 1) * looked.total) / DAY
    mib = (most + grown) / 2**20

    def parts(spent: Spent) -> str:
        return (
            f"{spent.total:.0f} s of CPU: controllers {spent.controllers:.0f}, arithmetic {spent.analyst:.0f},"
            f" database {spent.database:.0f}"
        )

    return [
        Figure(
            f"profiles of {GUESTS:,} guests, hourly, and daily with their cycles, classes and correlations",
            f"{share:.1f} % of a core",
            goal=f"≤ {GOAL_SHARE:g} %",
            kept=share <= GOAL_SHARE,
        ),
        Figure("…: a look at all", parts(looked)),
        Figure("…: a look at all with cycles, classes and correlations", parts(searched)),
        Figure(
            "…: memory at the most",
            f"{mib:.0f} MiB: arithmetic {most / 2**20:.0f}, controllers {grown / 2**20:.0f} more",
            goal=f"≤ {GOAL_MIB} MB more",
            kept=mib * 1.048576 <= GOAL_MIB,
        ),
    ]


async def _until_healthy(state: Path) -> None:
    for _ in range(600):
        try:
            if (await asyncio.to_thread(fetch, find_database(state, None), "/health")).strip() == b"OK":
                return
        except (OSError, WeftError):
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the database doesn't answer")
