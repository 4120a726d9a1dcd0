"""The node's published ports: their tables, the node's own programs that listen on one, and the flows that one has led to guests.

One change at a time: the driver calls it under its lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import msgspec

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Forward, Held, Segment
from weft.drivers.network.bridge import kernel, plan
from weft.drivers.network.bridge.kernel import Link
from weft.drivers.network.bridge.listening_ports import read_held
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.published_ports import render_forwards, render_router_forwards
from weft.drivers.network.bridge.nftables.tables import Tables
from weft.drivers.network.bridge.service.services import Services

log = logging.getLogger("weft.agent")


class PublishedPorts:
    """``find_segment`` gives a segment of this node by its id."""

    def __init__(
        self,
        host: Host,
        names: Names,
        tables: Tables,
        services: Services,
        find_segment: Callable[[str], Segment | None],
    ) -> None:
        self._host, self._names, self._tables, self._find_segment = host, names, tables, find_segment
        self._services = services
        self._forwards: list[Forward] | None = None
        self._held: frozenset[Held] = frozenset()

    @property
    def ports(self) -> frozenset[tuple[str, int]]:
        """(protocol, port) of each."""
        return frozenset((forward.protocol, forward.port) for forward in self._forwards or ())

    async def publish(self, forwards: list[Forward]) -> list[Forward] | None:
        """Publish exactly these; returns those that were published before, None where they are the same. Raises
        DriverFailed."""
        if self._forwards == forwards:
            return None
        before, self._forwards = self._forwards, forwards
        self._held = await asyncio.to_thread(read_held)
        try:
            await self.apply(await kernel.inspect_links())
        except BaseException:
            self._forwards = before
            raise
        return before or []

    async def apply(self, links: Mapping[str, Link]) -> bool:
        """Make the tables match what is published; returns whether one changed. Before the first ``publish`` nothing happens.
        Raises DriverFailed."""
        if self._forwards is None:
            return False
        here = [found for name in links if (found := self._names.id_in(name, "b"))]
        uplinks = {s: uplink for s in here if (uplink := plan.held_uplink(self._names, s, links))}
        segments = {s: known for s in here if (known := self._find_segment(s))}
        guests = [forward for forward in self._forwards if not forward.is_service]
        services = [forward for forward in self._forwards if forward.is_service]
        changed = await self._services.publish(services, self._held, uplinks, segments)
        for segment_id in sorted(uplinks):
            namespace = self._names.router(segment_id)
            table = render_router_forwards(self._host, segment_id, guests)
            if table.empty and await kernel.inspect_table(table.family, table.name, namespace) is None:
                continue
            changed |= await self._tables.ensure(namespace, table)
        cidrs = {s: known.cidr for s, known in segments.items()}
        table = render_forwards(self._names, self._host, guests, uplinks, cidrs, self._held)
        localnet = f"net/ipv4/conf/{self._host.underlay_link}/route_localnet"
        if not self._forwards:
            kernel.write_sysctl(localnet, "0")  # before its guard goes with the table
        if not guests:
            changed |= await self._tables.drop((table.family, table.name))
        if not self._forwards:
            return changed
        kernel.write_sysctl("net/ipv4/ip_forward", "1")
        if guests:
            changed |= await self._tables.ensure("", table)
        kernel.write_sysctl(localnet, "1")
        return changed

    async def find_held(self) -> list[Held]:
        """Find the ports on which the node's own programs listen; a published port of theirs is theirs. Raises DriverFailed."""
        before, self._held = self._held, await asyncio.to_thread(read_held)
        new = {(held.protocol, held.port) for held in self._held - before} & self.ports
        if new or self.ports & {(held.protocol, held.port) for held in before - self._held}:
            await self.apply(await kernel.inspect_links())
        for protocol, port in sorted(new):
            log.warning("port %d/%s is published, but a program that listens on it keeps it", port, protocol)
            if protocol == "udp":  # a flow that goes on for ever would go on to the guest
                await kernel.attempt("cut flows", _cut("udp", port))
        return sorted(self._held)

    async def cut_flows(self, before: list[Forward]) -> None:
        """End the flows of ports that are no longer published, or published elsewhere: they would go on to the old target. Open
        TCP flows to a guest that only changed its node stay: if it migrated while it ran they reach it through the old node,
        and if not, that node answers for it, or the kernel drops them within minutes."""
        kept, led = set(self._forwards or ()), {_leads_to(forward) for forward in self._forwards or ()}
        for forward in before:
            if forward not in kept:
                begun = ["--state", "SYN_SENT"] if _leads_to(forward) in led else []
                await kernel.attempt("cut flows", [*_cut(forward.protocol, forward.port), *begun])


def _cut(protocol: str, port: int) -> list[str]:
    """The words that end the flows which a published port has led to guests."""
    return ["conntrack", "-D", "-p", protocol, "--orig-port-dst", str(port), "--dst-nat"]


def _leads_to(forward: Forward) -> Forward:
    """The part of a forward that must stay the same for a flow through a published port to stay open."""
    return msgspec.structs.replace(forward, node_address="", nodes=()) if forward.protocol == "tcp" else forward
