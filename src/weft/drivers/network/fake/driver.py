"""The fake network driver: one node's segments, ports and forwards as values, for tests and simulated nodes.

What the kernel would keep lives in a ``FakeWire``; a driver made anew on the same wire finds everything again, as after
an agent's restart. Delays and failures are set on the driver and met by its next calls. Touches nothing outside.
"""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Filter, Forward, Held, NetworkProbe, NetworkState, Port, Segment
from weft.objects.errors import DriverFailed, InUse, NotFound, WeftError


@dataclass
class FakeWire:
    """One node's kernel: what outlives a driver. ``damage`` is what the next ``heal`` finds and mends,
    ``listeners`` leads a guest's (address, port) to a port of loopback, ``flows`` are its connections by address, ``older``
    how many of them go through this node's router."""

    segments: dict[str, Segment] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    forwards: list[Forward] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    refused_hosts: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    listeners: dict[tuple[str, int], int] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    flows: dict[str, list[str]] = field(default_factory=dict)
    older: dict[str, int] = field(default_factory=dict)


class FakeNetwork:
    """``delays_seconds`` and ``failures`` go by method name ("plug"); a failure list is used up from its front, one
    error per call. ``calls`` records every call as (method, id)."""

    name = "fake"

    def __init__(self, host: Host, clock: Clock, wire: FakeWire | None = None) -> None:
        self.wire = wire if wire is not None else FakeWire()
        self.delays_seconds: dict[str, float] = {}
        self.failures: dict[str, list[WeftError]] = {}
        self.calls: list[tuple[str, str]] = []
        self.flows = FakeFlows(self)
        self._host = host
        self.clock = clock
        self.meet = functools.partial(_meet, self)

    async def probe(self) -> NetworkProbe:
        await self.meet("probe", "")
        return NetworkProbe(driver=self.name, usable=True, capabilities=["bridge", "overlay", "tap"], problems=[])

    async def ensure_segment(self, segment: Segment) -> None:
        await self.meet("ensure_segment", segment.id)
        for other in self.wire.segments.values():
            if other.vni == segment.vni and other.id != segment.id:
                raise InUse(f"network {segment.name!r}: VNI {segment.vni} is taken on this node by {other.name}")
        self.wire.segments[segment.id] = segment

    async def dial(self, segment_id: str, address: str, port: int, seconds: float = 5.0) -> socket.socket:
        await self.meet("dial", segment_id)
        if (address, port) not in self.wire.listeners:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return socket.create_connection(("127.0.0.1", self.wire.listeners[address, port]))

    async def remove_segment(self, segment_id: str) -> None:
        await self.meet("remove_segment", segment_id)
        held = [port.id for port in self.wire.ports.values() if port.segment_id == segment_id]
        if held:
            raise InUse(
                f"network {segment_id} has {len(held)} ports on node {self._host.node}", hint="unplug them first"
            )
        self.wire.segments.pop(segment_id, None)

    async def plug(self, port: Port) -> str:
        await self.meet("plug", port.id)
        if port.segment_id not in self.wire.segments:
            raise NotFound(
                f"port {port.id}: network {port.segment_id} isn't on node {self._host.node}",
                hint="ensure the segment before its ports",
            )
        self.wire.ports[port.id] = port
        if port.inside is not None:
            return f"/run/netns/{self._host.link_prefix}g{port.inside.guest}"
        return f"{self._host.link_prefix}t{port.id}"

    async def unplug(self, port_id: str) -> None:
        await self.meet("unplug", port_id)
        self.wire.ports.pop(port_id, None)

    async def ensure_forwards(self, forwards: list[Forward]) -> None:
        await self.meet("ensure_forwards", "")
        self.wire.forwards = list(forwards)

    async def find_held(self) -> list[Held]:
        await self.meet("find_held", "")
        return sorted(self.wire.held)

    async def find_addresses(self) -> list[str]:
        await self.meet("find_addresses", "")
        return list(self.wire.addresses)

    async def ensure_refused(self, cidrs: list[str], hosts: list[str]) -> None:
        await self.meet("ensure_refused", "")
        self.wire.refused, self.wire.refused_hosts = list(cidrs), list(hosts)

    async def ensure_filters(self, filters: list[Filter]) -> None:
        await self.meet("ensure_filters", "")
        self.wire.filters = list(filters)

    def switch(self, port: Port, node_address: str) -> None:
        self.calls.append(("switch", port.id))
        segment = self.wire.segments.get(port.segment_id)
        if segment is None:
            raise DriverFailed(f"segment {port.segment_id} is not on this node")
        endpoints = [
            msgspec.structs.replace(e, node_address=node_address) if e.mac == port.mac else e for e in segment.endpoints
        ]
        self.wire.segments[port.segment_id] = msgspec.structs.replace(segment, endpoints=endpoints)

    async def state(self) -> NetworkState:
        await self.meet("state", "")
        shared = [port.id for port in self.wire.ports.values() if port.inside is not None and port.inside.shared]
        return NetworkState(sorted(self.wire.segments), sorted(self.wire.ports), sorted(shared))

    async def heal(self) -> list[str]:
        await self.meet("heal", "")
        mended, self.wire.damage = self.wire.damage, []
        return mended

    async def close(self) -> None:
        await self.meet("close", "")


async def _meet(network: FakeNetwork, method: str, target: str) -> None:
    """Record a call, and let it meet the delay and the failure that wait for it."""
    network.calls.append((method, target))
    delay_seconds = network.delays_seconds.get(method, 0.0)
    if delay_seconds:
        await network.clock.sleep(delay_seconds)
    if network.failures.get(method):
        raise network.failures[method].pop(0)


class FakeFlows:
    def __init__(self, network: FakeNetwork) -> None:
        self._network = network

    async def list(self, port: Port) -> list[str]:
        await self._network.meet("flows", port.id)
        return [*self._network.wire.flows.get(port.address, ())]

    async def seed(self, port: Port, lines: Iterable[str]) -> None:
        await self._network.meet("seed", port.id)
        self._network.wire.flows[port.address] = [*lines]

    async def count_older(self, segment_id: str, address: str) -> int:
        await self._network.meet("count_older", segment_id)
        return self._network.wire.older.get(address, 0)
