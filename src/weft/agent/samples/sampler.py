"""Measures this node's workloads five times a second, and keeps the samples in files.

Reads counters that the drivers keep open; wakes by the clock. Nothing of it is reported: people ask for it, over a stream.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from weft.agent.samples.files import SampleFiles
from weft.agent.samples.node import NodeToMeasure, PoolSizes
from weft.agent.samples.series import gather_devices
from weft.agent.samples.track import STEP_SECONDS, Nics, NicsOfRun, Run, Source, Track, list_series
from weft.agent.state.allocation import port_id
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CountsNics, NetworkDriver
from weft.contracts.driver.runtime import Counters, HasCounters
from weft.kinds.allocation import AllocationSpec
from weft.kinds.parts.stream_verbs import SamplesInput
from weft.protocol.heartbeat import MOST_COUNTED, DeviceCounts
from weft.telemetry.metrics.devices import NODE_METRICS
from weft.telemetry.samples.query import plan_question

log = logging.getLogger("weft.agent")
LATE_SECONDS = 0.02  # after a step's beginning: timers are that inexact
SWEEP_SECONDS = 60.0
REOPEN_SECONDS = 1.0
COUNT_SECONDS = 5.0
WATCH_SECONDS = 1.0  # at most, from answer to answer
WATCHED_SECONDS = 10.0  # after a question about single steps
ALIVE = ("starting", "running", "paused")


class Sampler:
    """The samples of the workloads in ``table``, and of the node, in ``files``."""

    def __init__(
        self,
        files: SampleFiles,
        runtimes: Runtimes,
        table: AllocationTable,
        clock: Clock,
        network: NetworkDriver | None = None,
        node: NodeToMeasure | None = None,
    ) -> None:
        self._files = files
        self._runtimes, self._table, self._clock = runtimes, table, clock
        self._nics = Nics(network.nic_counters if isinstance(network, CountsNics) else None)
        self._node = node
        self._tracks: dict[str, Track] = {}  # by uid of the workload, or of the node
        self._failed: dict[str, float] = {}  # when it couldn't be measured, by workload uid
        self._watched: dict[str, float] = {}  # when somebody asked for single steps, by workload uid
        self._migrating: frozenset[str] = frozenset()  # workload uids
        self._ports: dict[str, tuple[AllocationSpec, tuple[str, ...]]] = {}  # by allocation uid
        self._counts: tuple[dict[str, DeviceCounts], dict[str, float]] = ({}, {})
        self._counted_at = float("-inf")
        self._problem = ""
        # While the tracks are in use: what measures goes on for a moment when it is cancelled.
        self._busy = threading.Lock()

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
                    self._forget_all_but(here)
                    own = {self._node.uid} if self._node is not None else set[str]()
                    await asyncio.to_thread(self._files.sweep, here | own)
        finally:
            with self._busy:
                for track in self._tracks.values():
                    track.close()
                self._tracks.clear()
                self._nics.close()

    async def answer(self, uid: str, given: SamplesInput) -> bytes:
        """The answer, as JSON, to a question about one workload. Raises InvalidInput, OSError."""
        question = plan_question(
            self._clock.now(), given.time_range, given.until, given.granularity, extremes=given.extremes
        )
        if question.level == 0:
            self._watched[uid] = self._clock.elapsed()
        return await self._files.answer(uid, question, given.series)

    async def watch(self, uid: str, given: SamplesInput, is_here: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The answer, and then what follows, a line each, while the workload is here. Raises InvalidInput, OSError."""
        now, seconds = self._clock.now(), given.time_range
        step = plan_question(now, seconds, 0.0, given.granularity).step_ms / 1000
        asked = msgspec.structs.replace(given, until=0.0, granularity=step)
        while is_here():
            document = await self.answer(uid, msgspec.structs.replace(asked, time_range=seconds))
            yield document.replace(b"\n", b"") + b"\n"
            await self._clock.sleep(min(step, WATCH_SECONDS))
            seconds, now = self._clock.now() - now + 2 * step, self._clock.now()

    def count_devices(self) -> tuple[dict[str, DeviceCounts], dict[str, float]]:
        """Count what disks and NICs have done so far, by workload uid, and the whole node: as it was read last."""
        if self._clock.elapsed() - self._counted_at >= COUNT_SECONDS:
            tracks = dict(self._tracks)
            node = tracks.pop(self._node.uid, None) if self._node is not None else None
            some = itertools.islice(tracks.items(), MOST_COUNTED)
            of_node = node.counted() if node is not None else {}
            self._counts = (
                {uid: gather_devices(track.counted()) for uid, track in some},
                {name: of_node[name] for name in NODE_METRICS if name in of_node},
            )
            self._counted_at = self._clock.elapsed()
        return self._counts

    def _find_runs(self) -> dict[str, Run]:
        """The guests that run here, by workload uid, and the node."""
        found, migrating = {}, set[str]()
        if self._node is not None:
            pools = tuple(pool.name for pool in self._node.pools.facts)
            found[self._node.uid] = Run("", None, None, 0, (), pools)
        for state in self._table:
            guest, spec = state.guest, state.local.spec
            if guest is not None and guest.state in ALIVE and (spec.role == "active" or spec.workload.uid not in found):
                disks = tuple(guest.shape.disks) if guest.shape is not None else ()
                ports = self._find_ports(state)
                if spec.migration is not None:
                    migrating.add(spec.workload.uid)
                found[spec.workload.uid] = Run(
                    state.local.id, guest.pid, guest.started_at, guest.incarnation, ports, disks
                )
        self._migrating = frozenset(migrating)
        return found

    def _find_ports(self, state: AllocationState) -> tuple[str, ...]:
        spec, uid = state.local.spec, state.local.uid
        known = self._ports.get(uid)
        if known is None or known[0] is not spec:
            known = self._ports[uid] = (spec, tuple(port_id(uid, nic.uid) for nic in spec.nics))
        return known[1]

    def _measure(self, runs: dict[str, Run]) -> None:
        with self._busy:
            self._measure_each(runs)

    def _measure_each(self, runs: dict[str, Run]) -> None:
        now, elapsed, problems = self._clock.now(), self._clock.elapsed(), set[str]()
        replaced = self._files.take_replaced()
        for uid in [uid for uid, track in self._tracks.items() if runs.get(uid) != track.run or uid in replaced]:
            self._tracks.pop(uid).close()
        try:
            self._nics.read((port for run in runs.values() for port in run.ports), elapsed)
        except OSError as problem:
            problems.add(f"NICs: {problem}")
        for uid, run in runs.items():
            try:
                if (track := self._tracks.get(uid) or self._open(uid, run)) is not None:
                    track.measure(now, often=self._is_watched(uid, elapsed))
            except ProcessLookupError:  # it has just ended
                self._give_up(uid)
            except OSError as problem:
                problems.add(str(problem))
                self._give_up(uid)
            except (
                Exception
            ) as problem:  # a defect of one driver must keep no other workload from it, nor end the agent
                log.debug("samples of %s", uid, exc_info=True)
                problems.add(f"{type(problem).__name__}: {problem}")
                self._give_up(uid)
        self._note("; ".join(sorted(problems)))

    def _is_watched(self, uid: str, elapsed: float) -> bool:
        """Whether what costs the guest time is read at each step. Not while it migrates: no probe may make that longer."""
        watched_at = self._watched.get(uid)
        return uid not in self._migrating and watched_at is not None and elapsed - watched_at < WATCHED_SECONDS

    def _open(self, uid: str, run: Run) -> Track | None:
        if self._clock.elapsed() - self._failed.get(uid, -REOPEN_SECONDS) < REOPEN_SECONDS:
            return None
        self._failed[uid] = self._clock.elapsed()
        counters = self._open_counters(uid, run)
        if counters is None:
            return None
        try:
            sources = self._plan_sources(counters, run.ports)
            file = self._files.open(uid, list_series(sources))
        except BaseException:
            for one in counters:
                one.close()
            raise
        del self._failed[uid]
        track = self._tracks[uid] = Track(run, sources, file, self._clock)
        return track

    def _open_counters(self, uid: str, run: Run) -> list[Counters] | None:
        """None where nothing is counted. Raises OSError."""
        if self._node is not None and uid == self._node.uid:
            return [*self._node.open_counters(), PoolSizes(self._node.pools)]
        state = next((state for state in self._table if state.local.id == run.guest_id), None)
        driver = self._runtimes.find(state.local) if state is not None else None
        return driver.open_counters(run.guest_id) if isinstance(driver, HasCounters) else None

    def _plan_sources(self, counters: Sequence[Counters], ports: Sequence[str]) -> list[Source]:
        """NICs before the last of several, which are disks: there may be more than fit."""
        before = max(1, len(counters) - 1)
        return [Source(one) for one in (*counters[:before], NicsOfRun(self._nics, ports), *counters[before:])]

    def _give_up(self, uid: str) -> None:
        self._failed[uid] = self._clock.elapsed()
        if (track := self._tracks.pop(uid, None)) is not None:
            track.close()

    def _forget_all_but(self, uids: set[str]) -> None:
        here = {state.local.uid for state in self._table}
        self._ports = {uid: known for uid, known in self._ports.items() if uid in here}
        self._failed = {uid: at for uid, at in self._failed.items() if uid in uids}
        self._watched = {uid: at for uid, at in self._watched.items() if uid in self._tracks}

    def _note(self, problem: str) -> None:
        """Log what keeps samples from being recorded, when it begins and when it ends."""
        if problem and not self._problem:
            log.warning("guest samples are not being recorded: %s", problem)
        elif self._problem and not problem and not self._failed:
            log.info("guest samples are being recorded again")
        else:
            return
        self._problem = problem
