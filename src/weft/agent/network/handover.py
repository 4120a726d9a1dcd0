"""Handover of the traffic of live migrating guests, before the server knows.

Reads the network executor's endpoints; switches ports through the network driver, at once, the moment the source's machine
is paused. The hops are saved with the rest of the node's surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from weft.agent.network.plan import is_anothers, ports_of
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.checkpoint import Hop
from weft.contracts.driver.network import CanHandOver, Endpoint, NetworkDriver, Port
from weft.kinds.allocation import AllocatedNic
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

Way = Literal["out", "in"]


class NetworkHandover:
    """``hops`` are the NICs that came or left, a NIC's newest last; ``on_switched`` brings the rest up to date.

    A NIC has at most one hop out, and one hop in from each node that it came from: connections may have been opened at any
    of those nodes. Nodes that ask each other for a NIC's connections form a tree with the guest at its root: the node that takes
    the guest over asks the node that it left, and no node asks the one that has it."""

    def __init__(
        self,
        driver: NetworkDriver,
        own_address: str,
        hops: list[Hop],
        neighbours: Mapping[str, Mapping[str, Endpoint]],
        on_switched: Callable[[], None],
    ) -> None:
        self.hops = hops
        self._driver, self._own, self._neighbours = driver, own_address, neighbours
        self._on_switched = on_switched

    @property
    def networks(self) -> set[str]:
        """Networks of such guests, followed while their connections lead through this node."""
        return {hop.nic.network_uid for hop in self.hops}

    def expect(self, local: LocalAllocation, peer_address: str = "") -> Way:
        """Note that the allocation migrates, with its other end at ``peer_address``; the direction."""
        way: Way = "in" if local.spec.role == "target" else "out"
        for nic in local.spec.nics:
            known, newest = self._find(nic), self._find_newest(nic)
            peer = peer_address or (known.node_address if way == "in" and known is not None else "")
            if newest is not None and newest.way == way and peer in ("", self._own, newest.peer):
                self._put(newest)  # a repeated call, perhaps after the switch
            else:
                self._put(Hop(way, nic, peer))
        return way

    def switch_away(self, local: LocalAllocation, to_address: str) -> None:
        """Source, the moment its machine is paused: send the guest's traffic to the node at ``to_address``, at once. Raises
        DriverFailed."""
        self._switch(local, "out", to_address, to_address)

    def switch_here(self, local: LocalAllocation) -> None:
        """Target, the same moment: send the guest's traffic to its ports here, at once. Raises DriverFailed."""
        self._switch(local, "in", "", self._own)

    def undo_switch(self, local: LocalAllocation) -> None:
        """Either end: the guest stays at the source. At once; may be called without a switch. Raises DriverFailed."""
        way: Way = "in" if local.spec.role == "target" else "out"
        back = []
        for port, nic in zip(ports_of(local), local.spec.nics, strict=True):
            hop = self._find_newest(nic)
            if hop is not None and hop.way == way and hop.switched:
                self._put(msgspec.structs.replace(hop, switched=False))
                back.append((port, hop.peer if way == "in" else self._own))
        self._direct(back)

    async def list_flows(self, local: LocalAllocation) -> list[list[str]]:
        """Source: each NIC's open connections, for ``seed_flows``. Raises WeftError."""
        if not isinstance(self._driver, CanHandOver):
            return []
        return [await self._driver.flows.list(port) for port in ports_of(local)]

    async def seed_flows(self, local: LocalAllocation, flows: list[list[str]]) -> None:
        """Target, before the guest runs here: let its open connections pass the filters. Raises WeftError."""
        if isinstance(self._driver, CanHandOver):
            for port, lines in zip(ports_of(local), flows, strict=False):
                await self._driver.flows.seed(port, lines)

    def _switch(self, local: LocalAllocation, way: Way, peer: str, to: str) -> None:
        for nic in local.spec.nics:
            newest = self._find_newest(nic)
            hop = newest if newest is not None and newest.way == way else Hop(way, nic)
            self._put(msgspec.structs.replace(hop, switched=True, peer=peer or hop.peer))
        self._direct([(port, to) for port in ports_of(local)])

    def _direct(self, ports: list[tuple[Port, str]]) -> None:
        """Send these ports' traffic to these nodes. Raises the first problem, after trying all."""
        problems = []
        for port, to in ports:
            try:
                if isinstance(self._driver, CanHandOver) and to:
                    self._driver.switch(port, to)
            except WeftError as problem:
                problems.append(problem)
        self._on_switched()
        if problems:
            raise problems[0]

    def _put(self, hop: Hop) -> None:
        """Add it as its NIC's newest, without the hops that it replaces: an earlier hop out, an abandoned hop in."""
        self.hops = [h for h in self.hops if not _replaces(hop, h)] + [hop]

    def _find_newest(self, nic: AllocatedNic) -> Hop | None:
        return next((hop for hop in reversed(self.hops) if hop.nic.uid == nic.uid), None)

    def follow(self) -> None:
        """Drop hops in from a node to which the guest has returned from here, by the server's list: two nodes would ask each
        other."""
        self.hops = [hop for hop in self.hops if not self._is_back_there(hop)]

    def _is_back_there(self, hop: Hop) -> bool:
        known, newest = self._find(hop.nic), self._find_newest(hop.nic)
        gone = newest is not None and newest.way == "out" and newest.switched
        return hop.way == "in" and gone and known is not None and known.node_address == hop.peer

    async def end(self, here: Mapping[str, str]) -> set[str]:
        """Drop hops in whose guest is gone, hops whose migration ended before the switch or whose address has another owner, and
        hops out without connections through this node. ``here``: the roles of allocations by NIC. The networks without hops
        now."""
        over = [hop for hop in self.hops if not await self._stays(hop, here.get(hop.nic.uid))]
        before = self.networks
        self.hops = [hop for hop in self.hops if hop not in over]  # keeps hops that were added meanwhile
        return before - self.networks

    async def _stays(self, hop: Hop, role: str | None) -> bool:
        known = self._find(hop.nic)
        if is_anothers(known, hop.nic):
            return False
        if hop.way == "in":
            left = any(h.way == "out" and h.nic.uid == hop.nic.uid for h in self.hops)
            return role is not None or (hop.switched and left)
        if role is not None:
            return role != "active"
        if not hop.switched or known is None:
            return False
        if known.node_address == self._own:
            return True
        # Connections that it had opened before it came here pass untracked: they can't be counted.
        came = any(h.way == "in" and h.nic.uid == hop.nic.uid for h in self.hops)
        return came or await self._is_used(hop.nic)

    def _find(self, nic: AllocatedNic) -> Endpoint | None:
        """The server's endpoint of a NIC."""
        return self._neighbours.get(nic.network_uid, {}).get(nic.address)

    async def _is_used(self, nic: AllocatedNic) -> bool:
        if not isinstance(self._driver, CanHandOver):
            return False
        return await self._driver.flows.count_older(short_id(nic.network_uid), nic.address) > 0


def _replaces(hop: Hop, older: Hop) -> bool:
    if (hop.nic.uid, hop.way) != (older.nic.uid, older.way):
        return False
    return hop.way == "out" or older.peer in ("", hop.peer) or not older.switched
