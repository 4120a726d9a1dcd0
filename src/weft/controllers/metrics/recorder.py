"""Records the history of metrics: what nodes' heartbeats bring, every ten seconds, to the database for metrics.

Reads the nodes' leases and the view; stores nothing itself. Only the leader runs it, so each moment is sent once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from weft.controllers.metrics.samples import list_samples
from weft.informer.leader_lease import LeaderLease
from weft.objects.errors import StoreUnavailable
from weft.protocol.heartbeat import LEASE_PREFIX
from weft.telemetry.metrics.sample import Sample

INTERVAL_SECONDS = 10.0
FIRST_SECONDS = 1.0  # after a start, until there is something to see
_log = logging.getLogger("weft.metrics")


class Recorder:
    def __init__(self, leadership: LeaderLease, put: Callable[[Sequence[Sample]], None]) -> None:
        self._leadership, self._put = leadership, put
        self._sent: dict[str, int] = {}

    async def run(self) -> None:
        """Record for ever."""
        clock, seconds = self._leadership.clock, FIRST_SECONDS
        while True:
            await clock.sleep(seconds)
            try:
                leases = await self._leadership.store.leases(LEASE_PREFIX, digests=True)
                samples = list(list_samples(self._leadership.cache.view, leases, self._sent, clock.now()))
            except StoreUnavailable:
                continue
            except Exception:  # a defect here must not end the controllers
                _log.exception("the nodes' metrics can't be recorded")
                continue
            finally:
                seconds = min(2 * seconds, INTERVAL_SECONDS)
            if samples:
                self._put(samples)
