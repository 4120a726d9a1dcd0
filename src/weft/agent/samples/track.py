"""The measurement of one run of a workload, or of the node: what counts, and the file that keeps the samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.agent.samples.series import LEAST_SECONDS, compute_values, name_nic_counters, plan_measures
from weft.contracts.clock import Clock
from weft.contracts.driver.network import NicCounters, NicCounts
from weft.contracts.driver.runtime import Counted, Counters
from weft.telemetry.samples.file import SampleFile
from weft.telemetry.samples.layout import LEVELS, MOST_SERIES, NAN, Series

STEP_SECONDS = LEVELS[0].step_ms / 1000
MOST_MISSED = 5  # steps; a longer silence is a gap


class Run(msgspec.Struct, frozen=True):
    """One run of a guest here, with the devices it has."""

    guest_id: str
    pid: int | None
    started_at: float | None
    incarnation: int
    ports: tuple[str, ...] = ()  # of its NICs, in their order
    disks: tuple[str, ...] = ()


class Nics:
    """The counts of all NICs here, read once for all workloads."""

    def __init__(self, counters: NicCounters | None) -> None:
        self._counters = counters
        self.at = 0.0
        self.counts: dict[str, NicCounts] = {}

    def read(self, ports: Iterable[str], at: float) -> None:
        """Raises OSError."""
        self.counts = {}
        if self._counters is not None:
            self.at, self.counts = at, self._counters.read(ports)

    def close(self) -> None:
        if self._counters is not None:
            self._counters.close()


class NicsOfRun:
    """Counters (contracts.driver.runtime) of a workload's NICs."""

    def __init__(self, nics: Nics, ports: Sequence[str]) -> None:
        self._nics = nics
        self._names = [(port, name_nic_counters(index)) for index, port in enumerate(ports)]
        self.names = tuple(name for _, names in self._names for name in names)

    def read(self, at: float, *, often: bool) -> Counted | None:
        values: dict[str, float] = {}
        for port, names in self._names:
            if (counts := self._nics.counts.get(port)) is not None:
                values.update(zip(names, counts, strict=True))
        return Counted(self._nics.at, values) if values else None

    def close(self) -> None: ...


class Source:
    """Counters, and what they were when they were read last."""

    def __init__(self, counters: Counters) -> None:
        self.counters, self.measures = counters, plan_measures(counters.names)
        self.columns: list[int] = []
        self.last = Counted(0.0, {})

    def measure(self, at: float, values: list[float], *, often: bool) -> None:
        """Put what is known into ``values``. Raises OSError when the run has ended."""
        counted = self.counters.read(at, often=often)
        if counted is None:
            return
        seconds = counted.at - self.last.at
        if seconds < LEAST_SECONDS and self.last.values:
            return
        computed = compute_values(self.measures, self.last.values, counted.values, seconds)
        for column, value in zip(self.columns, computed, strict=True):
            values[column] = value
        self.last = counted


class Track:
    """Samples of one run: of ``sources``, into ``file``, which has columns for them."""

    def __init__(self, run: Run, sources: Sequence[Source], file: SampleFile, clock: Clock) -> None:
        self.run, self.sources = run, sources
        self._file, self._clock = file, clock
        self._step = 0
        places = {series: column for column, series in enumerate(file.layout.series)}
        for source in sources:
            source.measures = tuple(measure for measure in source.measures if measure.series in places)
            source.columns = [places[measure.series] for measure in source.measures]

    def measure(self, now: float, *, often: bool) -> None:
        """Record the values of the step in which ``now`` (unix seconds) lies. Raises OSError when the run has ended, or the file
        can't be written."""
        values = [NAN] * len(self._file.layout.series)
        for source in self.sources:
            source.measure(self._clock.elapsed(), values, often=often)
        step = int(now / STEP_SECONDS)
        # The rates are of the steps, too, that were missed since the last: the machine was busy.
        missed = step - self._step - 1
        for late in range(missed if missed <= MOST_MISSED else 0, 0, -1):
            self._file.append(now - late * STEP_SECONDS, values)
        self._step = step
        self._file.append(now, values)

    def counted(self) -> dict[str, float]:
        """All counters as they were read last."""
        return {name: value for source in self.sources for name, value in source.last.values.items()}

    def close(self) -> None:
        for source in self.sources:
            source.counters.close()
        self._file.close()


def list_series(sources: Iterable[Source]) -> tuple[Series, ...]:
    """The series of these sources, the first MOST_SERIES of them."""
    return tuple(measure.series for source in sources for measure in source.measures)[:MOST_SERIES]
