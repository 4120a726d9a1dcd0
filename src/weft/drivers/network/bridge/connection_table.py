"""The node's table of connections, which its guests, its routers and the node itself share: how much of it one guest may take,
and what is taken back from a guest that goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from socket import inet_aton

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Port, Segment
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.kernel import Link
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.netlink.ctnetlink import forget_tracked
from weft.drivers.network.bridge.nftables.connection_limits import name_limits, render_limits
from weft.drivers.network.bridge.nftables.security_groups import CALL_IPTABLES
from weft.drivers.network.bridge.nftables.tables import Tables
from weft.drivers.network.bridge.plan import held_uplink
from weft.objects.errors import DriverFailed

log = logging.getLogger("weft.agent")
_MOST, _COUNT = "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count"
_BYTES_EACH = 65536  # of the machine's memory for one place in the table, which takes some 400
_PARTS, _LEAST = 64, 1024  # a guest gets this part of the table, and never fewer


class ConnectionTable:
    """``most`` is how many connections a guest may have; None: a part of the table."""

    def __init__(self, host: Host, names: Names, tables: Tables, most: int | None = None) -> None:
        self._host, self._names, self._tables = host, names, tables
        self._most = most
        self._warned = False

    async def limit(self, segments: Iterable[Segment]) -> bool:
        """Limit the guests of exactly these segments; says whether something had to change. A node whose kernel can't goes on
        without limits."""
        known = list(segments)
        if not known:
            return await self._tables.drop(name_limits(self._names))
        if not kernel.has_sysctl(CALL_IPTABLES):
            return False  # bridged connections aren't followed there
        try:
            if self._most is None:
                self._most = max(_LEAST, raise_most(self._host.capacity.memory_bytes) // _PARTS)
            return await self._tables.ensure("", render_limits(self._names, known, self._most))
        except (DriverFailed, OSError) as problem:
            if not self._warned:
                log.warning("guests' connections aren't limited on this node: %s", problem)
            self._warned = True
            return False

    def read_fill(self) -> tuple[int, int]:
        """See contracts.driver.network. Raises OSError."""
        return _read(_COUNT), _read(_MOST)

    async def forget(self, gone: Port, segment: Segment | None, zone: int | None, links: Mapping[str, Link]) -> None:
        """Forget the connections of a guest whose port has gone: in its segment's zone, in its router, and where the node gave
        them its own address. Those of a guest that is on another node now go on."""
        ends = segment.endpoints if segment is not None else ()
        if any(end.address == gone.address and end.node_address != self._host.underlay_address for end in ends):
            return
        address, uplink = inet_aton(gone.address), held_uplink(self._names, gone.segment_id, links)

        def forget() -> None:
            if zone is not None:
                forget_tracked(lambda number, source, target: number == zone and address in (source, target))
            namespace = self._names.router(gone.segment_id)
            if uplink is None or not kernel.is_namespace(kernel.NAMESPACES / namespace):
                return
            router = inet_aton(uplink.router)
            masked = forget_tracked(lambda _, source, target: address in (source, target), namespace)
            left = {(one.protocol, one.destination, one.destination_port, one.answer_port) for one in masked}
            forget_tracked(
                lambda number, source, _: number == 0 and source == router,
                but=lambda one: (one.protocol, one.destination, one.destination_port, one.source_port) not in left,
            )

        try:
            await asyncio.to_thread(forget)
        except DriverFailed as problem:
            log.warning("the connections of port %s stay until they time out: %s", gone.id, problem)


def _read(path: str) -> int:
    return int((Path("/proc/sys") / path).read_text())


def raise_most(memory_bytes: int) -> int:
    """Let the table grow with the machine's memory, if the kernel lets this process say so: not in a network namespace of a
    machine's own. Returns what it holds at most."""
    most, wanted = _read(_MOST), memory_bytes // _BYTES_EACH
    if wanted <= most:
        return most
    try:
        (Path("/proc/sys") / _MOST).write_text(str(wanted))
    except OSError:
        return most
    return wanted
