"""Where instances of functions on this node reach networks: in each that a recipe here names, one address of the node's own.

Asks the server for the address, follows the network as if a guest were in it, and plugs a namespace that instances stand behind.
Nothing of it is kept over the agent's end: what one before this left is taken away, as its instances are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Set

import msgspec

from weft.agent.network.executor import NetworkExecutor
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.driver.function import EgressEndpoint
from weft.contracts.driver.host import Host
from weft.kinds.allocation import AllocatedNic, AllocationSpec, Resources
from weft.objects.errors import WeftError
from weft.objects.identity import Ref

log = logging.getLogger("weft.agent")


class Held(msgspec.Struct, frozen=True):
    """A network of ``project`` that this node stands in; ``egress_endpoint`` is None until it is plugged."""

    project: str
    wanted: LocalAllocation
    egress_endpoint: EgressEndpoint | None = None


class EgressEndpoints:
    """``ask`` gives the node's NIC in a network of a project (by uid) and blocks; ``on_change`` is told when the node comes into a
    network or leaves one; ``hear`` waits until all is known that the server says of a network."""

    def __init__(
        self,
        host: Host,
        network: NetworkExecutor,
        ask: Callable[[str, str], AllocatedNic],
        on_change: Callable[[], None],
        hear: Callable[[str], Awaitable[None]],
    ) -> None:
        self._host, self._network, self._ask, self._on_change, self._hear = host, network, ask, on_change, hear
        self._held: dict[str, Held] = {}  # by network uid
        self._locks: dict[str, asyncio.Lock] = {}

    def hosted(self) -> list[LocalAllocation]:
        """As the network's keeper takes them: each like a guest with one NIC."""
        return [held.wanted for held in self._held.values()]

    def networks(self) -> list[str]:
        """Uids, for the node's report."""
        return sorted(self._held)

    async def ensure(self, project: str, network_uid: str) -> EgressEndpoint:
        """Where instances reach that network; made unless it is there. Raises DriverFailed, NotFound, Forbidden, Unavailable."""
        if (held := self._held.get(network_uid)) is not None and held.egress_endpoint is not None:
            return held.egress_endpoint
        async with self._locks.setdefault(network_uid, asyncio.Lock()):
            if (held := self._held.get(network_uid)) is not None and held.egress_endpoint is not None:
                return held.egress_endpoint
            nic = await asyncio.to_thread(self._ask, project, network_uid)
            wanted = make_wanted(self._host, nic)
            self._held[network_uid] = Held(project, wanted)
            self._on_change()
            try:
                await self._hear(network_uid)  # or the first who asks would find nobody there
                (namespace,) = await self._network.plug(wanted)
            except BaseException:
                await asyncio.shield(self._leave(network_uid))
                raise
            egress_endpoint = EgressEndpoint(namespace, nic.gateway, nic.domain, nic.mtu)
            self._held[network_uid] = Held(project, wanted, egress_endpoint)
            return egress_endpoint

    async def confirm(self, network_uid: str, listed: Set[str]) -> None:
        """The server's list of a network's addresses: where it doesn't hold this node's, the server was restored, and is asked
        anew. If another has that address by now, this node leaves the network, and comes back with another when it needs to."""
        held = self._held.get(network_uid)
        if held is None or held.egress_endpoint is None or held.wanted.spec.nics[0].address in listed:
            return
        async with self._locks.setdefault(network_uid, asyncio.Lock()):
            if self._held.get(network_uid) is not held:
                return
            try:
                now = await asyncio.to_thread(self._ask, held.project, network_uid)
                if now.address != held.wanted.spec.nics[0].address:
                    log.warning(
                        "network %s: this node's egress endpoint lost its address to another endpoint", now.network
                    )
                    await self._leave(network_uid)
            except WeftError as problem:
                log.warning("network %s: %s", network_uid, problem.message)

    async def keep_only(self, needed: Callable[[], set[str]]) -> None:
        """Leave the networks that aren't ``needed`` by then. Raises DriverFailed."""
        for uid in [uid for uid in self._held if uid not in needed()]:
            async with self._locks.setdefault(uid, asyncio.Lock()):
                if uid in self._held and uid not in needed():
                    await self._leave(uid)

    async def close(self) -> None:
        """Leave them all."""
        await self.keep_only(set)

    async def _leave(self, uid: str) -> None:
        held = self._held.pop(uid)
        await self._network.unplug(held.wanted)
        self._on_change()


def make_wanted(host: Host, nic: AllocatedNic) -> LocalAllocation:
    """Pure. A node's own NIC as if it were a guest's, which is all that networks know."""
    spec = AllocationSpec(
        node=host.node,
        node_uid=host.node_uid,
        workload=Ref("node", host.node, host.node_uid),
        workload_generation=0,
        incarnation=0,
        resources=Resources(),
        nics=[nic],
    )
    return LocalAllocation(name=f"{host.node_uid}.{nic.uid}", uid=nic.uid, spec=spec)
