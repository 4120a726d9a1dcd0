"""Rules for what guests may reach and who may reach them, on one node: ranges refused to their outbound traffic, and their security
groups.

Writes the tables that ``rules`` and ``filters`` render; ends open connections that are no longer allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Filter, Port
from weft.contracts.network.rules import UPLINKS, Opened, RefusedDestinations, may_open
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.netlink.ctnetlink import Tracked, forget_tracked, mark_tracked
from weft.drivers.network.bridge.nftables import rules
from weft.drivers.network.bridge.nftables.flows import find_closed, name_flow
from weft.drivers.network.bridge.nftables.security_groups import (
    CALL_IPTABLES,
    COUNTED,
    REVOKED,
    choose_zones,
    render_filters,
)
from weft.drivers.network.bridge.nftables.tables import Tables
from weft.objects.errors import DriverFailed


class Firewall:
    """One change at a time, under the driver's lock."""

    def __init__(self, host: Host, names: Names, tables: Tables) -> None:
        self._host, self._names, self._tables = host, names, tables
        self._refused: RefusedDestinations | None = None
        self._opened = Opened({}, ())
        self._filters: list[Filter] | None = None
        self._followed: frozenset[str] = frozenset()

    async def refuse(self, refused: RefusedDestinations, opened: Opened, routers: Mapping[str, str]) -> None:
        """Refuse exactly this to guests' outbound traffic, but for what is ``opened``; open connections to other services of
        hosts end. ``routers``: the segments by their routers' addresses. Raises DriverFailed."""
        if (self._refused, self._opened) == (refused, opened):
            return
        self._refused = None
        await self._apply_refused(refused, opened)
        self._refused, self._opened = refused, opened
        await self._cut_refused(refused, opened, routers)

    async def open(self, opened: Opened, routers: Mapping[str, str]) -> None:
        """Open exactly this to guests. Raises DriverFailed."""
        if self._refused is not None:
            await self.refuse(self._refused, opened, routers)

    async def publish(self, published: frozenset[tuple[str, int]]) -> None:
        """Set the published ports of nodes. Raises DriverFailed."""
        if self._refused is not None and self._refused.published != published:
            refused, self._refused = self._refused._replace(published=published), None
            await self._apply_refused(refused, self._opened)
            self._refused = refused

    async def filter(self, filters: list[Filter]) -> None:
        """Filter exactly these ports in exactly this way. Raises DriverFailed (without br_netfilter)."""
        if self._filters == filters:
            return
        self._filters = None
        await self._apply_filters(filters)
        self._filters = filters
        try:
            await self._cut_revoked(filters)
        except DriverFailed:
            self._filters = None  # so that the next call tries again
            raise

    async def follow(self, segments: frozenset[str]) -> None:
        """Follow the connections of exactly these segments, beside those with filters, once the filters are known; none on a node
        without br_netfilter. Raises DriverFailed."""
        if self._followed == segments or not kernel.has_sysctl(CALL_IPTABLES):
            return
        followed, self._followed = self._followed, segments
        if self._filters is None:
            return  # an earlier process's still hold
        try:
            await self._apply_filters(self._filters)
        except DriverFailed:
            self._followed = followed
            raise

    @property
    def zones(self) -> dict[str, int]:
        """The zones in which connections are followed, by segment."""
        return choose_zones(self._filters or [], self._followed)

    @property
    def knows_filters(self) -> bool:
        return self._filters is not None

    @property
    def filtered(self) -> dict[str, str]:
        """The ports with filters: their segments."""
        return {found.port_id: found.segment_id for found in self._filters or []}

    @property
    def unused_tables(self) -> list[tuple[str, str]]:
        """Family and name of its tables on a node without segments, if no port has filters."""
        return [] if self.filtered else [(family, self._names.filters_table) for family in ("ip", "bridge")]

    async def heal(self) -> list[str]:
        """Mend the tables. Returns what was mended, in words."""
        mended = []
        if self._refused is not None and await self._apply_refused(self._refused, self._opened):
            mended.append("refused destinations")
        if self._filters is not None and await self._apply_filters(self._filters):
            mended.append("security groups")
        return mended

    def zone_of(self, port: Port) -> int | None:
        """The zone in which the port's connections are followed; None where nothing follows them."""
        return self.zones.get(port.segment_id)

    async def _apply_refused(self, refused: RefusedDestinations, opened: Opened) -> bool:
        table = rules.render_refused(self._names, refused, opened)
        if refused.cidrs:
            return await self._tables.ensure("", table)
        return await self._tables.drop((table.family, table.name))

    async def _apply_filters(self, filters: list[Filter]) -> bool:
        tables = render_filters(self._names, filters, self._followed)
        if not filters and not self._followed:
            return await self._tables.drop(*((table.family, table.name) for table in tables))
        if not kernel.has_sysctl(CALL_IPTABLES):
            raise DriverFailed(
                f"network: node {self._host.node} can't enforce security groups: its kernel lacks br_netfilter",
                hint="modprobe br_netfilter on the node",
                details={"step": "filter ports"},
            )
        changed = kernel.write_sysctl(CALL_IPTABLES, "1")
        for counted in COUNTED:
            kernel.write_sysctl(counted, "1")
        return await self._tables.ensure("", *tables) or changed

    async def _cut_refused(self, refused: RefusedDestinations, opened: Opened, routers: Mapping[str, str]) -> None:
        """End guests' open connections to hosts' services that are closed to them: one that is open would go on."""
        if not routers or not refused.hosts:
            return
        from_routers = ["--orig-src", str(UPLINKS.network_address), "--mask-src", str(UPLINKS.netmask)]
        _, listing, _ = await kernel.attempt("read flows", ["conntrack", "-L", *from_routers])
        for flow in find_closed(listing, refused, opened, routers):
            ends = ["-p", flow.protocol, "-s", flow.source, "-d", flow.target]
            ports = ["--dport", str(flow.port)] if flow.port else []
            await kernel.attempt("cut flows", ["conntrack", "-D", *ends, *ports])

    async def _cut_revoked(self, filters: list[Filter]) -> None:
        """End open connections that may no longer be open, and let those begin again that may be. Raises DriverFailed."""
        here: dict[int, dict[str, Filter]] = {zone: {} for zone in self.zones.values()}
        for one in filters:
            here[self.zones[one.segment_id]][one.address] = one

        def is_known(zone: int, *_: bytes) -> bool:
            return zone in here

        def may_stay(one: Tracked) -> bool:
            return may_open(name_flow(one), here[one.zone])

        def cut() -> None:
            forget_tracked(is_known, but=lambda one: not one.mark & REVOKED or not may_stay(one))
            mark_tracked(is_known, REVOKED, but=lambda one: bool(one.mark & REVOKED) or may_stay(one))

        if here:
            await asyncio.to_thread(cut)
