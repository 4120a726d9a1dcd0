"""The services of a node's segments, and their published ports: their tables, and the flows that a target leaves behind.

One change at a time: the driver calls it under its lock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import msgspec

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Forward, Held, Segment
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.security_groups import CALL_IPTABLES
from weft.drivers.network.bridge.nftables.tables import Tables
from weft.drivers.network.bridge.plan import Uplink
from weft.drivers.network.bridge.service.tables import (
    SERVICES_TABLE,
    Published,
    find_published,
    name_published,
    render_published,
    render_services,
    render_steering,
)

log = logging.getLogger("weft.agent")


class Services:
    """Knows the segments of the node from the last ``apply``, and the published ports from the last ``publish``."""

    def __init__(self, host: Host, names: Names, tables: Tables) -> None:
        self._host, self._names, self._tables = host, names, tables
        self._segments: dict[str, Segment] = {}
        self._forwards: list[Forward] = []
        self._warned = False

    async def apply(self, segment: Segment, before: Segment | None, all_: Iterable[Segment] | None = None) -> bool:
        """Make the tables match ``segment``, which was ``before``, and ``all_`` that are here (None: as before); returns whether
        one changed. Raises DriverFailed."""
        if all_ is not None:
            self._segments = {one.id: one for one in all_}
        self._segments[segment.id] = segment
        changed = await self._route(segment)
        changed |= await self._steer()
        if before is not None:
            await self._cut(before, segment)
        return changed

    async def publish(
        self,
        forwards: list[Forward],
        held: Iterable[Held],
        uplinks: Mapping[str, Uplink],
        segments: Mapping[str, Segment],
    ) -> bool:
        """Publish exactly these; ``uplinks`` and ``segments`` are of those here. Returns whether a table changed. Raises
        DriverFailed."""
        concerned = {forward.segment_id for forward in (*self._forwards, *forwards)}
        self._forwards = forwards
        changed = False
        for id in sorted(concerned & segments.keys() & uplinks.keys()):
            changed |= await self._route(segments[id])
        if not forwards:
            return await self._tables.drop(("ip", name_published(self._names))) or changed if concerned else changed
        published = [self._find(forward, segments.get(forward.segment_id)) for forward in forwards]
        cidrs = {id: segment.cidr for id, segment in segments.items()}
        table = render_published(self._names, self._host, published, uplinks, cidrs, held)
        return await self._tables.ensure("", table) or changed

    async def forget(self, segment_id: str) -> None:
        """The segment is gone. Raises DriverFailed."""
        if self._segments.pop(segment_id, None) is not None:
            await self._steer()

    def lead_to(self, segment: Segment) -> bool:
        """Whether a published port leads to a service of the segment."""
        return any(forward.segment_id == segment.id for forward in self._forwards)

    async def _route(self, segment: Segment) -> bool:
        namespace = self._names.router(segment.id)
        led = [self._find(forward, segment) for forward in self._forwards if forward.segment_id == segment.id]
        if segment.services or led or await kernel.inspect_table("ip", SERVICES_TABLE, namespace) is not None:
            return await self._tables.ensure(namespace, render_services(segment, led))
        return False

    def _find(self, forward: Forward, segment: Segment | None) -> Published:
        return find_published(self._host, forward, segment)

    async def _steer(self) -> bool:
        tables = render_steering(self._names, self._host, self._segments.values())
        if all(service.proxied for one in self._segments.values() for service in one.services):
            return await self._tables.drop(*((table.family, table.name) for table in tables))
        if not kernel.has_sysctl(CALL_IPTABLES) and not self._warned:
            self._warned = True
            log.warning("workloads here can't reach services: the kernel lacks br_netfilter; modprobe br_netfilter")
        return await self._tables.ensure("", *tables)

    async def _cut(self, before: Segment, now: Segment) -> None:
        """Forget what would go on to targets that get no new connections: UDP's flows, which have no end of their own, and of
        TCP's those that nobody has answered, or that were refused: the client's next try, from the same port, gets another
        target."""
        left = {service.address: {t.address for t in service.targets if t.weight} for service in now.services}
        for service in (one for one in before.services if not one.proxied):
            gone = {t.address for t in service.targets if t.weight} - left.get(service.address, set())
            protocols = sorted({port.protocol for port in service.ports})
            for address in sorted(gone):
                for protocol in protocols:
                    ends = ["-p", protocol, "--orig-dst", service.address, "--reply-src", address]
                    enter = ["nsenter", f"--net={kernel.NAMESPACES / self._names.router(now.id)}"]
                    for state in (["--state", "SYN_SENT"], ["--state", "CLOSE"]) if protocol == "tcp" else ([],):
                        await kernel.attempt("cut flows", [*enter, "conntrack", "-D", *ends, *state])


def differ_in_services_only(one: Segment, other: Segment) -> bool:
    """Whether it takes the tables of services alone to come from one to the other: the same services, with the same targets."""
    if msgspec.structs.replace(one, services=other.services) != other:
        return False
    shape = [
        [(s.address, s.names, s.proxied, [t.address for t in s.targets]) for s in seg.services] for seg in (one, other)
    ]
    return shape[0] == shape[1]
