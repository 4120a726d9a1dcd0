"""Measures this node's guests five times a second, and keeps the samples in rings: one file per workload.

Reads counters that the runtimes keep open; writes files below ``samples/``, and removes those of workloads that this node no
longer has. Woken by the clock. Nothing of it is reported: people ask for it, over a stream.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from weft.agent.samples.figures import GUEST, make_values
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import Counters, HasCounters
from weft.kinds.parts.stream_verbs import SamplesInput
from weft.objects.identity import short_id
from weft.telemetry.rings.layout import Series
from weft.telemetry.rings.query import Question, answer, plan_question
from weft.telemetry.rings.ring import Ring, find_ring, open_ring

log = logging.getLogger("weft.agent")
STEP_SECONDS = 0.2
LATE_SECONDS = 0.02  # after a step's beginning: timers are that inexact
SWEEP_SECONDS = 60.0
REOPEN_SECONDS = 1.0
ALIVE = ("starting", "running", "paused")
AT_ONCE = 2  # answers in the making
SERIES = tuple(figure.series for figure in GUEST)


class Run(msgspec.Struct, frozen=True):
    """One run of a guest here."""

    guest_id: str
    pid: int | None
    started_at: float | None
    incarnation: int


class Track:
    """The measurement of one run of a guest: the counters it has, and the file."""

    def __init__(self, run: Run, counters: Counters, ring: Ring, clock: Clock) -> None:
        self.run = run
        self._counters, self._ring, self._clock = counters, ring, clock
        self._before: dict[str, float] = {}
        self._at = 0.0

    def measure(self, now: float) -> None:
        """Raises OSError when the run has ended, or the file can't be written."""
        counted, at = self._counters.read(), self._clock.elapsed()
        values = make_values(self._ring.layout.series, self._before, counted, at - self._at)
        self._before, self._at = counted, at
        self._ring.append(now, values)

    def close(self) -> None:
        self._counters.close()
        self._ring.close()


class Samples:
    """The samples of the guests in ``table``, in files below ``state_dir``."""

    def __init__(self, state_dir: Path, runtimes: Runtimes, table: AllocationTable, clock: Clock) -> None:
        self._folder = state_dir / "samples"
        self._runtimes, self._table, self._clock = runtimes, table, clock
        self._tracks: dict[str, Track] = {}  # by workload uid
        self._failed: dict[str, float] = {}  # when it couldn't be measured, by workload uid
        self._problem = ""
        self._busy = (
            threading.Lock()
        )  # while the tracks are in use: what measures goes on for a moment when it is cancelled
        self._answers = asyncio.Semaphore(AT_ONCE)

    async def keep(self) -> None:
        """Measure for ever."""
        swept_at, here = self._clock.elapsed(), set[str]()
        try:
            while True:
                now = self._clock.now()
                await self._clock.sleep(STEP_SECONDS - now % STEP_SECONDS + LATE_SECONDS)
                await asyncio.to_thread(self._measure, self._find_runs())
                before, here = here, {state.local.spec.workload.uid for state in self._table}
                # Those that left while no agent ran are found by the look once a minute.
                if before - here or self._clock.elapsed() - swept_at >= SWEEP_SECONDS:
                    swept_at = self._clock.elapsed()
                    await asyncio.to_thread(self._sweep, here)
        finally:
            with self._busy:
                for track in self._tracks.values():
                    track.close()
                self._tracks.clear()

    async def answer(self, uid: str, given: SamplesInput) -> bytes:
        """The answer, as JSON, to a question about one workload. Raises InvalidInput, OSError."""
        question = plan_question(
            self._clock.now(), given.time_range, given.until, given.granularity, extremes=given.extremes
        )
        async with self._answers:
            return await asyncio.to_thread(self._read, self._path(uid), question, given.series)

    def _find_runs(self) -> dict[str, Run]:
        """The guests that run here, by workload uid."""
        found = {}
        for state in self._table:
            guest, spec = state.guest, state.local.spec
            if guest is not None and guest.state in ALIVE and (spec.role == "active" or spec.workload.uid not in found):
                found[spec.workload.uid] = Run(state.local.id, guest.pid, guest.started_at, guest.incarnation)
        return found

    def _measure(self, runs: dict[str, Run]) -> None:
        with self._busy:
            self._measure_each(runs)

    def _measure_each(self, runs: dict[str, Run]) -> None:
        now, problems = self._clock.now(), set[str]()
        for uid in [uid for uid, track in self._tracks.items() if runs.get(uid) != track.run]:
            self._tracks.pop(uid).close()
        for uid, run in runs.items():
            try:
                if (track := self._tracks.get(uid) or self._open(uid, run)) is not None:
                    track.measure(now)
            except ProcessLookupError:  # it has just ended
                self._give_up(uid)
            except OSError as problem:
                problems.add(str(problem))
                self._give_up(uid)
        self._note("; ".join(sorted(problems)))

    def _open(self, uid: str, run: Run) -> Track | None:
        if self._clock.elapsed() - self._failed.get(uid, -REOPEN_SECONDS) < REOPEN_SECONDS:
            return None
        self._failed[uid] = self._clock.elapsed()
        state = next((state for state in self._table if state.local.id == run.guest_id), None)
        driver = self._runtimes.find(state.local) if state is not None else None
        counters = driver.open_counters(run.guest_id) if isinstance(driver, HasCounters) else None
        if counters is None:
            return None
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            ring = open_ring(self._path(uid), SERIES)
        except BaseException:
            counters.close()
            raise
        del self._failed[uid]
        track = self._tracks[uid] = Track(run, counters, ring, self._clock)
        return track

    def _give_up(self, uid: str) -> None:
        self._failed[uid] = self._clock.elapsed()
        if (track := self._tracks.pop(uid, None)) is not None:
            track.close()

    def _note(self, problem: str) -> None:
        """Log what keeps samples from being recorded, when it begins and when it ends."""
        if problem and not self._problem:
            log.warning("guest samples are not being recorded: %s", problem)
        elif self._problem and not problem and not self._failed:
            log.info("guest samples are being recorded again")
        else:
            return
        self._problem = problem

    def _read(self, path: Path, question: Question, wanted: Sequence[str], series: Sequence[Series] = SERIES) -> bytes:
        ring = find_ring(path)
        try:
            return b"".join(answer(ring, question, wanted, series))
        finally:
            if ring is not None:
                ring.close()

    def _sweep(self, uids: Iterable[str]) -> None:
        """Remove the files of workloads that aren't here any more."""
        own = {self._path(uid) for uid in uids}
        self._failed = {uid: at for uid, at in self._failed.items() if self._path(uid) in own}
        for path in self._folder.glob("*.ring"):
            if path not in own:
                path.unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self._folder / f"{short_id(uid)}.ring"
