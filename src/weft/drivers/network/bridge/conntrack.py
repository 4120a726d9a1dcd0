"""The open connections of guests that migrate: taken from one node's filters to the other's, and counted in its routers.

Reads and writes conntrack, in its program's own form of saved entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from weft.contracts.driver.network import Port
from weft.drivers.network.bridge import kernel
from weft.drivers.network.bridge.names import Names

_ZONE = re.compile(r" (?:-w|--zone) \d+")


class BridgeFlows:
    """``zone_of`` says in which zone a port's filter follows its connections; None for one without a filter."""

    def __init__(self, names: Names, zone_of: Callable[[Port], int | None]) -> None:
        self._names, self._zone_of = names, zone_of

    async def list(self, port: Port) -> list[str]:
        """The port's connections in its segment's zone, one line each."""
        zone = self._zone_of(port)
        return [] if zone is None else pick_flows(await kernel.list_flows(zone), port.address)

    async def seed(self, port: Port, lines: Iterable[str]) -> None:
        """Put these connections into this node's zone of the segment; those that are there stay as they are."""
        zone = self._zone_of(port)
        known = [rezone(line, zone) for line in lines] if zone is not None else []
        if known:
            await kernel.put_flows(known)

    async def count_older(self, segment_id: str, address: str) -> int:
        """The TCP connections of a guest that the segment's router here still carries."""
        namespace = self._names.router(segment_id)
        if not kernel.is_namespace(kernel.NAMESPACES / namespace):
            return 0
        return count_open(await kernel.list_flows(None, namespace), address)


def pick_flows(saved: Iterable[str], address: str) -> list[str]:
    """The lines of ``conntrack -o save`` that have ``address`` at an end, but for DHCP's and what is translated."""
    ends = (f" -s {address} ", f" -d {address} ")
    return [line for line in saved if any(end in line for end in ends) and " -g " not in line and " -n " not in line]


def rezone(line: str, zone: int) -> str:
    """A saved connection in the zone of this node's filters."""
    return f"{_ZONE.sub('', line)} -w {zone}"


def count_open(saved: Iterable[str], address: str) -> int:
    """The TCP connections with ``address`` at an end that somebody may still use; the kernel forgets idle ones."""
    end = re.compile(rf" -[sdrqgn] {re.escape(address)}[ :]")
    return sum("--state ESTABLISHED" in line and end.search(line) is not None for line in saved)
