"""Reads what a trace goes by from the store. Everything that a person may not see stays out of it.

NICs and groups are read as the scheduler and the controllers read them: by ``informer/addresses.py`` and
``informer/security_groups.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

from weft.api.admission.refusals import not_found
from weft.api.auth.authorise import authorise_read
from weft.api.context import ApiContext
from weft.api.network.facts import (
    Anothers,
    Backend,
    Balanced,
    Group,
    Network,
    NetworkAddress,
    Published,
    TraceTarget,
    Workload,
)
from weft.contracts.driver.network import Endpoint
from weft.contracts.network.rules import Opened, RefusedDestinations, open_hosts
from weft.contracts.store import Entry
from weft.informer.addresses import read_nics
from weft.informer.security_groups import read_groups
from weft.informer.view import Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import AllocatedGroup
from weft.kinds.endpoint import ENDPOINTS_BY_NETWORK, ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus, is_egress
from weft.kinds.network import NetworkSpec
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.nic import networks_of
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.published_port import PUBLISHED_PORT, PublishedPortSpec
from weft.kinds.registry import BY_NAME, WORKLOADS, is_workload
from weft.kinds.securitygroup import SecurityGroupSpec
from weft.kinds.service import SERVICE, ServiceSpec, ServiceStatus
from weft.objects.errors import NotFound, Unavailable
from weft.objects.identity import Ref, kind_prefix, named_key, object_key, short_id
from weft.objects.lifecycle import Phase
from weft.trust.credentials import Actor

_PAGE = 500
_KINDS = (*WORKLOADS, "network", "securitygroup", "endpoint", "service", "node", "publishedport")


class TraceReader:
    """The objects that one trace needs, each read once."""

    def __init__(self, context: ApiContext, actor: Actor, project: str) -> None:
        self._context, self._actor, self._project = context, actor, project
        self._view = View(_KINDS, (ENDPOINTS_BY_WORKLOAD, ENDPOINTS_BY_NETWORK))
        self._listed: set[str] = set()
        self.networks: dict[str, Network] = {}

    async def target(self, kind: str, project: str, name: str) -> Workload | Balanced | Published | None:
        """The end that takes connections; None for a kind that takes none. Raises Forbidden, NotFound."""
        if is_workload(kind):
            return await self.workload(kind, project, name)
        others: dict[str, Callable[[], Awaitable[Balanced | Published]]] = {
            SERVICE.name: lambda: self.service(project, name),
            PUBLISHED_PORT.name: lambda: self.published(name),
        }
        return await others[kind]() if kind in others else None

    async def workload(self, kind: str, project: str, name: str) -> Workload:
        """A VM or container. Raises Forbidden, NotFound."""
        item = await self._get(kind, project, name)
        await self._may_read("securitygroup", project)
        spec = spec_of(item)
        for network in networks_of(spec.networks):
            await self._network(named_key("network", project, network))
        await self._list(kind_prefix("securitygroup", project))
        nics, _ = read_nics(self._view, item)
        groups = read_groups(self._view, item)
        if isinstance(groups, str):
            raise not_found(BY_NAME["securitygroup"], groups, project)
        endpoints = [nic.endpoint for nic in nics if nic.endpoint is not None]
        status = endpoints[0].status(EndpointStatus) if endpoints else EndpointStatus()
        return Workload(
            kind=kind,
            name=name,
            project=project,
            shown=self._show(kind, project, name),
            networks=tuple(spec.networks),
            nics=tuple(nic.allocate() for nic in nics if nic.endpoint is not None),
            groups=tuple(self._write_out(group, project) for group in groups),
            node=status.node or "",
            node_address=status.node_address or "",
            silent=await self._find_silence(item, status),
        )

    async def service(self, project: str, name: str) -> Balanced:
        """Raises Forbidden, NotFound, Unavailable while it has no address."""
        item = await self._get(SERVICE.name, project, name)
        status = item.status(ServiceStatus)
        network = await self._network(named_key("network", project, item.spec(ServiceSpec).network))
        found = self._find_endpoint(status.network_uid, status.address)
        served = found.spec(EndpointSpec).served if found is not None else None
        if network is None or served is None:
            raise Unavailable(f"service/{name} has no address yet", hint=f"weft get service/{name} shows why")
        backends = []
        for target in served.targets:
            end = self._find_endpoint(network.uid, target.address)
            ref = end.spec(EndpointSpec).workload if end is not None else None
            if target.weight and ref is not None and is_workload(ref.kind):
                workload = await self.workload(ref.kind, ref.project or project, ref.name)
                backends.append(Backend(workload, target.address))
        return Balanced(
            shown=self._show(SERVICE.name, project, name),
            network=network,
            address=status.address,
            ports={(port.protocol, port.port): port.target for port in served.ports},
            backends=tuple(backends),
            http=served.http,
        )

    async def published(self, name: str) -> Published:
        """A published port of what the person may read. Raises NotFound for any other."""
        item = await self._load(object_key(PUBLISHED_PORT.name, None, name))
        spec = item.spec(PublishedPortSpec) if item is not None else None
        ref = spec.workload if spec is not None else None
        if spec is None or ref is None or ref.project is None or not self._sees(ref):
            protocol, _, port = name.partition("-")
            raise NotFound(
                f"port {port}/{protocol} leads to no workload or service that you may see",
                hint="--publish publishes one: weft vm set NAME --publish 8080:80",
            )
        if is_workload(ref.kind):
            leads_to: Workload | Balanced = await self.workload(ref.kind, ref.project, ref.name)
        else:
            leads_to = await self.service(ref.project, ref.name)
        shown = f"{PUBLISHED_PORT.name}/{name}"
        return Published(shown, spec.port, spec.protocol, spec.target_port, leads_to)

    async def address(self, address: str, source: Workload) -> TraceTarget:
        """The holder of an address, as ``source`` reaches it."""
        near = next((nic for nic in source.nics if IPv4Address(address) in IPv4Network(nic.cidr)), None)
        end = self._find_endpoint(near.network_uid, address) if near is not None else None
        if end is not None:
            ref = end.spec(EndpointSpec).workload
            if is_egress(end.spec(EndpointSpec)):
                return NetworkAddress(address)
            if ref.project is None or not self._sees(ref):
                return Anothers(address)
            if is_workload(ref.kind):
                return await self.workload(ref.kind, ref.project, ref.name)
            return await self.service(ref.project, ref.name)
        if near is None and self._actor.permits("network:list", self._project):
            await self._list(kind_prefix("network", self._project))
            for item in self._view.of_kind("network").values():
                is_own = item.envelope.project == self._project
                if is_own and IPv4Address(address) in IPv4Network(item.spec(NetworkSpec).cidr):
                    return NetworkAddress(address, network=f"network/{item.envelope.name}")
        return NetworkAddress(address)

    async def hosts(self) -> tuple[RefusedDestinations, Opened]:
        """Targets that nodes refuse to what leaves a network, and what networks open. Raises Unavailable."""
        ranges = self._context.ranges.newer_than("")
        if ranges is None:
            raise Unavailable("the server has not read the networks yet", hint="try again in a moment")
        await self._list(object_key(PUBLISHED_PORT.name, None, ""))
        ports = [item.spec(PublishedPortSpec) for item in self._view.of_kind(PUBLISHED_PORT.name).values()]
        published = frozenset((port.protocol, port.port) for port in ports)
        rules = self._context.ranges.find_rules(list(self.networks))
        opened = {
            short_id(uid): open_hosts(rule.open, ranges.server.ranges, ranges.server.ports)
            for uid, rule in rules.items()
        }
        hosts = (*ranges.nodes, *ranges.server.ranges)
        return RefusedDestinations(tuple(ranges.networks), hosts, published), Opened(opened, ())

    async def _find_silence(self, item: Item, status: EndpointStatus) -> str:
        phase = item.status(WorkloadStatus).phase
        if phase not in (Phase.RUNNING, Phase.MIGRATE):
            return f"is {phase}"
        if not status.node:
            return "is not plugged in yet"
        node = await self._load(object_key("node", None, status.node))
        if node is None:
            return f"is on node {status.node}, which is gone"
        known = node.status(NodeStatus).phase
        if known != "Ready":
            return f"is on node {status.node}, which is {known}"
        problem = next((one for one in node.report(NodeReport).problems if one.startswith("network")), "")
        return f"is on node {status.node}, which reports: {problem}" if problem else ""

    async def _network(self, key: str) -> Network | None:
        item = await self._load(key)
        if item is None:
            return None
        if item.uid not in self.networks:
            await self._list(object_key("endpoint", None, f"{item.uid}."))
            self.networks[item.uid] = await asyncio.to_thread(self._make_network, item)
        return self.networks[item.uid]

    def _make_network(self, item: Item) -> Network:
        spec, envelope = item.spec(NetworkSpec), item.envelope
        ends = [(end.spec(EndpointSpec), end) for end in self._view.find(ENDPOINTS_BY_NETWORK, item.uid)]
        return Network(
            uid=item.uid,
            name=self._show("network", envelope.project, envelope.name),
            cidr=spec.cidr,
            nat=spec.nat,
            endpoints=tuple(found for at, end in ends if (found := _read_endpoint(at, end)) is not None),
            services=tuple(at.address for at, _ in ends if at.served is not None),
            open=tuple(spec.open),
            egress={at.workload.name: at.address for at, _ in ends if is_egress(at)},
        )

    def _write_out(self, allocated: AllocatedGroup, project: str) -> Group:
        item = self._view.get(object_key("securitygroup", project, allocated.name))
        spec = item.spec(SecurityGroupSpec) if item is not None else SecurityGroupSpec()
        return Group(allocated, tuple(spec.ingress), tuple(spec.egress))

    def _find_endpoint(self, network_uid: str, address: str) -> Item | None:
        found = self._view.find(ENDPOINTS_BY_NETWORK, network_uid)
        return next((end for end in found if end.spec(EndpointSpec).address == address), None)

    def _show(self, kind: str, project: str | None, name: str) -> str:
        return f"{kind}/{name}" if project == self._project else f"{kind}/{project}/{name}"

    def _sees(self, ref: Ref) -> bool:
        permissions = (f"{ref.kind}:get", "securitygroup:get")
        return all(self._actor.permits(permission, ref.project) for permission in permissions)

    async def _may_read(self, kind: str, project: str, name: str | None = None) -> None:
        await authorise_read(self._context, self._actor, BY_NAME[kind], project, name, {})

    async def _get(self, kind: str, project: str, name: str) -> Item:
        """An object that the person may read. Raises Forbidden, NotFound."""
        await self._may_read(kind, project, name)
        item = await self._load(object_key(kind, project, name))
        if item is None:
            raise not_found(BY_NAME[kind], name, project)
        return item

    async def _load(self, key: str) -> Item | None:
        if self._view.get(key) is None and (entry := await self._context.store.get(key)) is not None:
            self._view.put(key, entry.value, entry.revision)
        return self._view.get(key)

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._view.put(entry.key, entry.value, entry.revision)

    async def _list(self, prefix: str) -> None:
        if prefix in self._listed:
            return
        self._listed.add(prefix)
        after = None
        while True:
            page = await self._context.store.list(prefix, limit=_PAGE, after=after)
            await asyncio.to_thread(self._take, page.entries)
            if (after := page.next) is None:
                return


def _read_endpoint(spec: EndpointSpec, item: Item) -> Endpoint | None:
    """Facts that nodes know of it; None while it isn't plugged in."""
    status = item.status(EndpointStatus)
    if not status.node_address:
        return None
    return Endpoint(spec.mac, spec.address, "", status.node_address, tuple(status.groups), item.uid)
