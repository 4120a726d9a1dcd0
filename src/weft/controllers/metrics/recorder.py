"""Records the history of metrics: what nodes' heartbeats bring, every ten seconds unless people want otherwise, to the
database for metrics; what gateways count of functions, and what devices report.

Reads the leases of nodes and gateways, and the view; stores nothing. Only the leader runs it, so each moment is sent once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from weft.controllers.metrics.endings import Endings
from weft.controllers.metrics.functions import list_functions
from weft.controllers.metrics.properties import list_properties
from weft.controllers.metrics.samples import list_samples
from weft.controllers.metrics.troubles import Kills, list_certificates, list_troubles
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import View
from weft.kinds.fields.deployment.status import DeploymentStatus, find_since
from weft.objects.errors import StoreUnavailable
from weft.protocol import function_counts
from weft.protocol.heartbeat import LEASE_PREFIX
from weft.telemetry.metrics.sample import Sample

INTERVAL_SECONDS = 10.0
JUDGED_SECONDS, MOST_SHARE = 1.0, 0.1  # while requests to a new revision are judged; of the time, in a large fabric
FIRST_SECONDS = 1.0  # after a start, until there is something to see
_log = logging.getLogger("weft.metrics")


def is_judging(view: View) -> bool:
    """Whether a verdict on a deployment waits for counts of requests."""
    return any(find_since(one.status(DeploymentStatus)) is not None for one in view.of_kind("deployment").values())


class Recorder:
    """``read_ends`` gives when the server's certificates end, in unix seconds by name; ``interval`` is in seconds."""

    def __init__(
        self,
        leadership: LeaderLease,
        put: Callable[[Sequence[Sample]], None],
        read_ends: Callable[[], Mapping[str, float]] = dict,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._leadership, self._put, self._read_ends, self._interval = leadership, put, read_ends, interval
        self._kills, self._endings = Kills(), Endings()
        self._sent: dict[str, int] = {}
        self._of_gateways: dict[str, int] = {}

    async def run(self) -> None:
        """Record for ever."""
        unsubscribe = self._leadership.cache.subscribe(self._kills.notice, ["allocation"])
        try:
            await self._record()
        finally:
            unsubscribe()

    async def _record(self) -> None:
        clock, seconds = self._leadership.clock, min(FIRST_SECONDS, self._interval)
        while True:
            await clock.sleep(seconds)
            began = clock.elapsed()
            try:
                store = self._leadership.store
                leases = await store.leases(LEASE_PREFIX, digests=True)
                gateways = await store.leases(function_counts.LEASE_PREFIX, digests=True)
                view, now = self._leadership.cache.view, clock.now()
                samples = list(list_samples(view, leases, self._sent, now))
                samples += list_functions(view, gateways, self._of_gateways, now)
                at = int(now * 1000)
                samples += (*list_troubles(view, at), *self._kills.list_samples(view, at))
                samples += list_properties(view, at)
                samples += list_certificates(self._read_ends(), at)
                samples += list(self._endings.list_samples(samples, at))
            except StoreUnavailable:
                continue
            except Exception:  # a defect here must not end the controllers
                _log.exception("the nodes' metrics can't be recorded")
                continue
            finally:
                judged = max(JUDGED_SECONDS, (clock.elapsed() - began) / MOST_SHARE)
                most = judged if is_judging(self._leadership.cache.view) else self._interval
                seconds = min(2 * seconds, most, self._interval)
            if samples:
                self._put(samples)
