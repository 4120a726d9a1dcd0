"""Records the history of metrics: what nodes' heartbeats bring, every ten seconds unless people want otherwise, to the
database for metrics; what gateways count of functions, and what devices report.

Reads the leases of nodes and gateways, and the view; stores nothing. Only the leader runs it, so each moment is sent once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from weft.controllers.asking import Asking, Later
from weft.controllers.metrics.endings import Endings
from weft.controllers.metrics.functions import list_functions
from weft.controllers.metrics.properties import list_properties
from weft.controllers.metrics.samples import list_samples
from weft.controllers.metrics.troubles import Kills, list_certificates, list_troubles
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, View
from weft.kinds.fields.deployment.status import DeploymentStatus, find_since
from weft.protocol import function_counts
from weft.protocol.heartbeat import LEASE_PREFIX
from weft.telemetry.metrics.moments import mark_moment
from weft.telemetry.metrics.sample import Sample

INTERVAL_SECONDS = 10.0
JUDGED_SECONDS, MOST_SHARE = 1.0, 0.1  # while requests to a new revision are judged; of the time, in a large fabric
FIRST_SECONDS = 1.0  # after a start, until there is something to see


def is_judging(view: View) -> bool:
    """Whether a verdict on a deployment waits for counts of requests."""
    return any(find_since(one.status(DeploymentStatus)) is not None for one in view.of_kind("deployment").values())


class Recorder(Asking):
    """``read_ends`` gives when the server's certificates end, in unix seconds by name; ``interval`` is in seconds."""

    name = "metrics"
    kinds = ("allocation",)
    always = ("metrics",)

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
        self._seconds = 0.0  # from one recording to the next; none yet

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.old is not None:  # those that were killed before this one led have been counted
            self._kills.notice([change])
        return ()

    async def take_turn(self, key: str) -> Later:
        clock = self._leadership.clock
        if not self._seconds:
            self._seconds = min(FIRST_SECONDS, self._interval)
            return {key: self._seconds}
        began = clock.elapsed()
        try:
            if samples := await self._list_samples():
                self._put(samples)
        finally:
            judged = max(JUDGED_SECONDS, (clock.elapsed() - began) / MOST_SHARE)
            most = judged if is_judging(self._leadership.cache.view) else self._interval
            self._seconds = min(2 * self._seconds, most, self._interval)
        return {key: self._seconds}

    async def _list_samples(self) -> list[Sample]:
        store, view = self._leadership.store, self._leadership.cache.view
        leases = await store.leases(LEASE_PREFIX, digests=True)
        gateways = await store.leases(function_counts.LEASE_PREFIX, digests=True)
        now = self._leadership.clock.now()
        samples = list(list_samples(view, leases, self._sent, now))
        samples += list_functions(view, gateways, self._of_gateways, now)
        at = int(now * 1000)
        samples += (*list_troubles(view, at), *self._kills.list_samples(view, at))
        samples += list_properties(view, at)
        samples += list_certificates(self._read_ends(), at)
        samples += list(self._endings.list_samples(samples, at))
        return [*samples, mark_moment(at, len(samples))] if samples else []
