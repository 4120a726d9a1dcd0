"""Guests that leave this node, or come to it, while they run: where what is for them goes, before the server says so.

Reads what the network keeper knows of endpoints; switches ports through the network driver, at once, the moment the
source's machine stands still. Kept in the node's durable copy with the rest of its surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from weft.agent.known import Wanted
from weft.agent.offline import Hop
from weft.agent.segments import is_anothers, ports_of
from weft.contracts.network import CanHandOver, Endpoint, NetworkDriver, Port
from weft.kinds.allocation import AllocatedNic
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

Way = Literal["out", "in"]


class HandOver:
    """``hops`` are the NICs that came or went, a NIC's newest last; ``on_switched`` is to bring all else up to date."""

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
        """Networks of such guests: followed for as long as connections of theirs lead through here."""
        return {hop.nic.network_uid for hop in self.hops}

    def expect(self, wanted: Wanted, peer_address: str = "") -> Way:
        """The allocation is a side of a move, the other one at ``peer_address``; which side."""
        way: Way = "in" if wanted.spec.role == "target" else "out"
        for nic in wanted.spec.nics:
            known = self._find(nic)
            peer = peer_address or (known.node_address if way == "in" and known is not None else "")
            newest = next((hop for hop in reversed(self.hops) if hop.nic.uid == nic.uid), None)
            again = newest if newest is not None and newest.way == way else None
            self._put(Hop(way, nic, peer, switched=again is not None and again.switched))
        return way

    def switch_away(self, wanted: Wanted, to_address: str) -> None:
        """Source, the moment its machine stands still: what is for the guest goes to the node at ``to_address``. At once,
        without waiting. Raises DriverFailed."""
        self._switch(wanted, "out", to_address, to_address)

    def switch_here(self, wanted: Wanted) -> None:
        """Target, the same moment: what is for the guest comes to its ports. At once. Raises DriverFailed."""
        self._switch(wanted, "in", "", self._own)

    def undo_switch(self, wanted: Wanted) -> None:
        """Either side: the guest goes on at the source. At once; nothing switched is fine. Raises DriverFailed."""
        way: Way = "in" if wanted.spec.role == "target" else "out"
        switched = {hop.nic.uid: hop for hop in self.hops if hop.way == way and hop.switched}
        back = []
        for port, nic in zip(ports_of(wanted), wanted.spec.nics, strict=True):
            if nic.uid in switched:
                hop = switched[nic.uid]
                self._put(msgspec.structs.replace(hop, switched=False))
                back.append((port, hop.peer if way == "in" else self._own))
        self._direct(back)

    async def list_flows(self, wanted: Wanted) -> list[list[str]]:
        """Source: what its filters follow of each NIC's connections, for ``seed_flows``. Raises WeftError."""
        if not isinstance(self._driver, CanHandOver):
            return []
        return [await self._driver.flows.list(port) for port in ports_of(wanted)]

    async def seed_flows(self, wanted: Wanted, flows: list[list[str]]) -> None:
        """Target, before the guest runs here: let its open connections pass. Raises WeftError."""
        if isinstance(self._driver, CanHandOver):
            for port, lines in zip(ports_of(wanted), flows, strict=False):
                await self._driver.flows.seed(port, lines)

    def _switch(self, wanted: Wanted, way: Way, peer: str, to: str) -> None:
        for nic in wanted.spec.nics:
            hop = next((h for h in self.hops if h.nic.uid == nic.uid and h.way == way), Hop(way, nic))
            self._put(msgspec.structs.replace(hop, switched=True, peer=peer or hop.peer))
            self.hops = [h for h in self.hops if not _returns(h, nic, way, to)]
        self._direct([(port, to) for port in ports_of(wanted)])

    def _direct(self, ports: list[tuple[Port, str]]) -> None:
        """Have what is for these ports go to these nodes. Raises the first problem, after trying all."""
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
        others = [h for h in self.hops if (h.nic.uid, h.way) != (hop.nic.uid, hop.way)]
        self.hops = [*others, hop]

    async def end(self, here: Mapping[str, str]) -> set[str]:
        """Forget those who came and are here no more, whose move ended before it was switched, whose address is another's
        by now, and those who left once nothing of theirs leads through this node; ``here`` are the roles of allocations
        by NIC. The networks that nothing more is remembered of."""
        kept = [hop for hop in self.hops if await self._stays(hop, here.get(hop.nic.uid))]
        before = self.networks
        self.hops = [hop for hop in self.hops if hop in kept]
        return before - self.networks

    async def _stays(self, hop: Hop, role: str | None) -> bool:
        known = self._find(hop.nic)
        if is_anothers(known, hop.nic):
            return False
        if hop.way == "in":
            return role is not None or any(h.way == "out" and h.nic.uid == hop.nic.uid for h in self.hops)
        if role is not None:
            return role != "active"
        if not hop.switched or known is None:
            return False
        if known.node_address == self._own:
            return True
        # What it had opened before it came here goes through here untracked: that can't be counted.
        came = any(h.way == "in" and h.nic.uid == hop.nic.uid for h in self.hops)
        return came or await self._is_used(hop.nic)

    def _find(self, nic: AllocatedNic) -> Endpoint | None:
        """What the server says of a NIC."""
        return self._neighbours.get(nic.network_uid, {}).get(nic.address)

    async def _is_used(self, nic: AllocatedNic) -> bool:
        if not isinstance(self._driver, CanHandOver):
            return False
        return await self._driver.flows.count_older(short_id(nic.network_uid), nic.address) > 0


def _returns(hop: Hop, nic: AllocatedNic, way: Way, to: str) -> bool:
    """Whether ``hop`` is over because its guest comes back, or goes back to where it came from: its older connections
    are that node's own again."""
    return hop.nic.uid == nic.uid and hop.way != way and (way == "in" or hop.peer == to)
