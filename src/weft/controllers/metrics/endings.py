"""Ends the series of conditions, which are sent only while they hold, with zeros, for as long as a rule may look back. Without
these an alert would go on until the database finds the series' last sample too old. Keeps what was sent since the start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weft.telemetry.metrics.sample import Sample

LOOK_BACK_MS = 300_000  # by default, of VictoriaMetrics and Prometheus
NAMES = frozenset({"weft_guest_disk_failed", "weft_lease_at_risk", "weft_migration_running_seconds"})
MOST = 10_000  # series; of more, those that began first are forgotten


class Endings:
    def __init__(self) -> None:
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}  # when each was sent last, in unix ms

    def list_samples(self, sent: Iterable[Sample], at: int) -> Iterator[Sample]:
        """The zeros of this moment, whose other samples are ``sent``."""
        now = {(one.name, one.labels) for one in sent if one.name in NAMES}
        for series, last in list(self._last.items()):
            if series in now:
                continue
            if not 0 <= at - last <= LOOK_BACK_MS:
                del self._last[series]
            else:
                yield Sample(*series, at, 0.0)
        self._last |= dict.fromkeys(now, at)
        for series in list(self._last)[: max(0, len(self._last) - MOST)]:
            del self._last[series]
