"""The digest that goes to the server with each report: what is measured and counted on this node."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.agent.flow.recorder import FlowRecorder
from weft.agent.guard.guests import GuardedGuests
from weft.agent.network.executor import NetworkExecutor
from weft.agent.node.link_load import LinkMeter
from weft.agent.node.proximity import Proximity
from weft.agent.node.usage import Meter
from weft.agent.service.executor import Proxies
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.protocol.heartbeat import DeviceCounts, Digest, add_devices, add_requests, add_talkers


class DigestSource:
    def __init__(
        self,
        meter: Meter,
        table: AllocationTable,
        proximity: Proximity,
        link: LinkMeter,
        network: NetworkExecutor,
        flows: FlowRecorder,
        proxies: Proxies,
        guarded: GuardedGuests,
        clock: Clock,
    ) -> None:
        self._meter, self._table, self._proximity, self._link = meter, table, proximity, link
        self._network, self._flows, self._proxies, self._guarded = network, flows, proxies, guarded
        self._clock = clock
        self.newest = Digest(measured=False)  # the one that was reported last
        # What workloads' disks and NICs, and the node, have done so far: of the one who takes samples.
        self.count_devices: Callable[[], tuple[dict[str, DeviceCounts], dict[str, float]]] = lambda: ({}, {})

    def make(self) -> Digest:
        """The guests' usage, if it can be measured, the counts of functions' instances, and the ports that programs hold."""
        digest = self._meter.digest() or Digest(measured=False)
        if self._table.functions is not None:
            digest = msgspec.structs.replace(digest, instances=self._table.functions.count())
        devices, node = self.count_devices()
        paths, link = self._proximity.list_paths(), self._link.note(self._clock.elapsed())
        digest = msgspec.structs.replace(
            digest, held=self._network.held, node=node, paths=paths, link=link, stamp=self._guarded.make_stamp()
        )
        digest = add_requests(add_talkers(digest, self._flows.talkers.rates), self._proxies.count())
        self.newest = add_devices(digest, devices)
        return self.newest
