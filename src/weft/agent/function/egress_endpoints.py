"""The node's egress endpoints: for each network that a recipe here names, or in which the node has a proxy, an address of its own,
by which instances and the proxy reach it.

Asks the server for the address, follows the network as if a guest were in it, and plugs a namespace for them. Those for functions
alone don't outlive their agent: they are removed, as its instances are. Those with a proxy stay, as the proxy does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set

import msgspec

from weft.agent.network.executor import NetworkExecutor
from weft.agent.server.client import Server
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.agent.watches import ServerWatches
from weft.contracts.driver.function import EgressEndpoint
from weft.contracts.driver.host import Host
from weft.kinds.allocation import AllocatedNic, AllocationSpec, Resources
from weft.objects.errors import WeftError
from weft.objects.identity import Ref

log = logging.getLogger("weft.agent")


class Held(msgspec.Struct, frozen=True):
    """A network of ``project`` in which this node has an address."""

    project: str
    local: LocalAllocation
    egress_endpoint: EgressEndpoint | None = None  # None until it is plugged


class EgressEndpoints:
    """The node's endpoints are put into ``table``; ``reporter`` is woken when the node joins or leaves a network."""

    def __init__(
        self,
        host: Host,
        server: Server,
        network: NetworkExecutor,
        watches: ServerWatches,
        table: AllocationTable,
        reporter: Reporter,
    ) -> None:
        self._host, self._server, self._network = host, server, network
        self._watches, self._table, self._reporter = watches, table, reporter
        self._held: dict[
            str, Held
        ] = {}  # by network uid; those that were recalled are only in the table until they are needed
        self._locks: dict[str, asyncio.Lock] = {}
        self._for_functions: set[str] = set()  # network uids
        self.for_proxies: set[str] = set()

    async def keep(self) -> None:
        """Follow the server's lists for ever."""
        while True:
            await self.confirm(*await self._watches.listed.get())

    def networks(self) -> list[str]:
        """Uids, for the node's report."""
        return sorted(self._held)

    def recall(self, network_uid: str, nic: AllocatedNic) -> None:
        """An earlier agent had this address, for a proxy that may run yet."""
        self.for_proxies.add(network_uid)
        self._table.egress[network_uid] = make_local(self._host, nic)

    async def ensure(self, project: str, network_uid: str, *, proxy: bool = False) -> EgressEndpoint:
        """The endpoint in that network, made if it is missing; for a ``proxy``, or for functions. Raises DriverFailed, NotFound,
        Forbidden, Unavailable."""
        (self.for_proxies if proxy else self._for_functions).add(network_uid)
        if (held := self._held.get(network_uid)) is not None and held.egress_endpoint is not None:
            return held.egress_endpoint
        async with self._locks.setdefault(network_uid, asyncio.Lock()):
            if (held := self._held.get(network_uid)) is not None and held.egress_endpoint is not None:
                return held.egress_endpoint
            local = self._table.egress.get(network_uid)  # recalled
            local = local or make_local(self._host, await self._ask(project, network_uid))
            (nic,) = local.spec.nics
            self._held[network_uid], self._table.egress[network_uid] = Held(project, local), local
            self._change()
            try:
                await self._watches.wait_for_network(network_uid)  # so that the first instance finds its neighbours
                (namespace,) = await self._network.plug(local)
            except BaseException:
                await asyncio.shield(self._leave(network_uid))
                raise
            egress_endpoint = EgressEndpoint(namespace, nic.gateway, nic.domain, nic.mtu)
            self._held[network_uid] = Held(project, local, egress_endpoint)
            return egress_endpoint

    async def confirm(self, network_uid: str, listed: Set[str]) -> None:
        """Check the server's list of a network's addresses. If it lacks this node's, the server was restored: ask again. If another
        endpoint has that address by now, leave the network; the next need of it brings a new address."""
        held = self._held.get(network_uid)
        if held is None or held.egress_endpoint is None or held.local.spec.nics[0].address in listed:
            return
        async with self._locks.setdefault(network_uid, asyncio.Lock()):
            if self._held.get(network_uid) is not held:
                return
            try:
                now = await self._ask(held.project, network_uid)
                if now.address != held.local.spec.nics[0].address:
                    log.warning(
                        "network %s: this node's egress endpoint lost its address to another endpoint", now.network
                    )
                    await self._leave(network_uid)
            except WeftError as problem:
                log.warning("network %s: %s", network_uid, problem.message)

    async def keep_only(self, needed: Callable[[], set[str]]) -> None:
        """Leave the networks that are no longer ``needed`` by functions, nor by a proxy. Raises DriverFailed."""
        self._for_functions &= needed()
        for uid in [uid for uid in self._held if uid not in needed() | self.for_proxies]:
            async with self._locks.setdefault(uid, asyncio.Lock()):
                if uid in self._held and uid not in needed() | self.for_proxies:
                    await self._leave(uid)

    async def drop_proxy(self, network_uid: str) -> None:
        """The node has no proxy there any more. Raises DriverFailed."""
        self.for_proxies.discard(network_uid)
        async with self._locks.setdefault(network_uid, asyncio.Lock()):
            if network_uid not in self._for_functions | self.for_proxies:
                if network_uid not in self._held and (local := self._table.egress.get(network_uid)) is not None:
                    self._held[network_uid] = Held("", local)
                if network_uid in self._held:
                    await self._leave(network_uid)

    def of_functions(self) -> set[str]:
        """The networks that functions here are in."""
        return set(self._for_functions)

    async def close(self) -> None:
        """Leave those for functions alone."""
        await self.keep_only(set)

    async def _leave(self, uid: str) -> None:
        held = self._held.pop(uid)
        self._table.egress.pop(uid, None)
        await self._network.unplug(held.local)
        self._change()

    def _change(self) -> None:
        self._watches.follow_networks()
        self._reporter.wake()

    async def _ask(self, project: str, network_uid: str) -> AllocatedNic:
        return await asyncio.to_thread(self._server.ask_egress_endpoint, self._host.node, project, network_uid)


def make_local(host: Host, nic: AllocatedNic) -> LocalAllocation:
    """Pure. A node's own NIC as if it were a guest's: networks treat both alike."""
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
