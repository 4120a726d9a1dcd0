"""This node's part of the tenant networks: the segments, ports and published ports that its allocations need.

Reads endpoints, published ports and address ranges from the server; acts through the network driver, one change at a time.
Woken when one changes, when an allocation comes or goes, and every HEAL_SECONDS to repair damage.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from weft.agent.network.handover import NetworkHandover
from weft.agent.network.plan import fold_filters, fold_held, fold_segments, keep_forwards, ports_of
from weft.agent.network.server_place import join, locate
from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.checkpoint import CheckpointFailed, CheckpointStore, Surroundings
from weft.agent.state.service import ServedAddress, ServiceAddresses
from weft.agent.state.table import AllocationTable
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Endpoint, Filter, Forward, NetworkDriver, Segment
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocatedNic
from weft.kinds.fields.allocated_migration import is_between_clusters
from weft.kinds.network import SYSLOG, TRACES
from weft.objects.errors import WeftError
from weft.objects.identity import Ref, short_id
from weft.protocol.heartbeat import HeldPorts
from weft.protocol.report import ReportAnswer, ServerPlace

log = logging.getLogger("weft.agent")
HEAL_SECONDS = 10.0
IDLE_SECONDS = 30.0  # a network without a port stays ready this long, so that its next guest need not wait


class Idle(msgspec.Struct, frozen=True):
    """A segment that nothing here needs."""

    uid: str  # of its network; "" if unknown
    remove_at: float


class NetworkExecutor:
    """Has the driver make what the allocations of ``table`` need."""

    def __init__(
        self,
        driver: NetworkDriver,
        host: Host,
        store: CheckpointStore,
        clock: Clock,
        table: AllocationTable,
        runtimes: Runtimes,
        reporter: Reporter,
        server_places: Sequence[str] = (),
    ) -> None:
        self._driver, self._host, self._store, self._clock = driver, host, store, clock
        self._table, self._runtimes, self._reporter = table, runtimes, reporter
        self._changing = asyncio.Lock()
        self._woken = asyncio.Event()
        known = store.load_surroundings()
        # the endpoints of this node's networks, by network uid and address
        self.neighbours = {uid: {e.address: e for e in found} for uid, found in known.endpoints.items()}
        self.service_addresses = ServiceAddresses(known.services, [self.wake])
        self._forwards: dict[tuple[int, str], Forward] = {(f.port, f.protocol): f for f in known.forwards}
        self._faded_neighbours: dict[str, dict[str, Endpoint]] = {}
        self._faded_forwards: dict[tuple[int, str], Forward] = {}
        self._ranges_version, self._ranges, self._node_ranges = known.ranges_version, known.ranges, known.node_ranges
        self._server, self._located, self._server_places = known.server, known.located, tuple(server_places)
        self._rules = known.rules
        self.egress_before = known.egress  # of the agent before this one
        self.addresses: list[str] = []  # the node's own
        self._idle: dict[str, Idle] | None = None  # by segment id; None until the driver has listed them
        self._applied: dict[str, Segment] = {}
        # What the gateways of networks here take from their guests, by network uid.
        self.services: dict[str, tuple[Segment, frozenset[str]]] = {}
        self._applied_forwards: list[Forward] | None = None
        self._listening: frozenset[tuple[str, int]] = frozenset()
        self._published: frozenset[tuple[str, int]] = frozenset()
        self.departed: list[ServedAddress] = []  # services with targets that leave, as the routers here have them
        self.held = HeldPorts()  # by programs of this node
        self._applied_refused: tuple[list[str], list[str]] | None = None
        self._applied_filters: list[Filter] | None = None
        self._closed: set[str] = set()  # the uids of allocations whose ports were closed then
        self.handover = NetworkHandover(driver, host.underlay_address, known.hops, self.neighbours, self._on_switched)
        self._saved = known

    def wake(self) -> None:
        """Refresh soon: something that segments depend on has changed."""
        self._woken.set()

    def put_neighbour(self, network_uid: str, address: str, endpoint: Endpoint | None) -> None:
        """The server's state of one endpoint; None: it is gone, or not plugged in."""
        known = self.neighbours.setdefault(network_uid, {})
        self._faded_neighbours.get(network_uid, {}).pop(address, None)
        if endpoint is None:
            known.pop(address, None)
        else:
            known[address] = endpoint
        self.wake()

    def fade_neighbours(self, network_uid: str, listed: set[str]) -> None:
        """The server lists only these addresses: the others are kept for networks with an orphan here."""
        known = self.neighbours.get(network_uid, {})
        self.service_addresses.fade(network_uid, listed)
        for address in [a for a in known if a not in listed]:
            self._faded_neighbours.setdefault(network_uid, {})[address] = known.pop(address)
        self.wake()

    def put_forward(self, port: int, protocol: str, forward: Forward | None) -> None:
        """The server's state of one published port; None: it leads nowhere."""
        key = (port, protocol)
        self._faded_forwards.pop(key, None)
        if forward is None:
            self._forwards.pop(key, None)
        else:
            self._forwards[key] = forward
        self.wake()

    def fade_forwards(self, listed: set[tuple[int, str]]) -> None:
        """The server lists only these ports: the others are kept if they lead to an orphan here."""
        for key in [k for k in self._forwards if k not in listed]:
            self._faded_forwards[key] = self._forwards.pop(key)
        self.wake()

    def take_answer(self, answer: ReportAnswer) -> None:
        """The current address ranges of all the fabric's networks and of its nodes, and where its server is. Also what networks
        that are needed here open now; one that the server doesn't find keeps its last. Of those that are deleted idle segments are
        removed at once."""
        if answer.ranges is not None:
            self._ranges_version, self._ranges = answer.ranges_version, answer.ranges
            self._node_ranges, self._server = answer.node_ranges, answer.server
            self.wake()
        needed = self._table.networks() | self.handover.networks
        rules = {uid: rule for uid, rule in {**self._rules, **answer.networks}.items() if uid in needed}
        if rules != self._rules:
            self._rules = rules
            self.wake()
        known = self._idle or {}
        for id in [id for id, idle in known.items() if idle.uid in answer.gone_networks]:
            known[id] = Idle(known[id].uid, 0.0)
            self.wake()

    @property
    def idle(self) -> list[str]:
        """Uids of networks whose segments may be removed once the server says that they are deleted."""
        return sorted(idle.uid for idle in (self._idle or {}).values() if idle.uid)

    def ask(self) -> dict[str, Any]:
        """Questions of the node's networks to the server: fields of ``Question``."""
        needed = sorted(self._table.networks() | self.handover.networks)
        return {"ranges_version": self._ranges_version, "idle_networks": self.idle, "networks": needed}

    async def plug(self, local: LocalAllocation) -> list[str]:
        """Make the allocation's segments and ports; the interface names in the order of its NICs. Raises WeftError."""
        async with self._changing:
            here = [*self._table.hosted(), local]
            await self._refuse(here)
            segments = self._fold(here)
            try:
                await self._filter(here, segments)  # before there is a tap to filter
            except WeftError as problem:
                if local.spec.groups:
                    raise
                log.warning("network: %s", problem)  # another guest's filters failed
            for uid in dict.fromkeys(nic.network_uid for nic in local.spec.nics):
                await self._ensure(uid, segments[uid])
            ports = ports_of(local, in_namespace=self._runtimes.in_namespace(local))
            return [await self._driver.plug(port) for port in ports]

    async def open(self, local: LocalAllocation) -> None:
        """Open the allocation's ports if they are closed still: its lease has begun. Raises WeftError."""
        if local.uid not in self._closed:
            return  # opened while its guest was held: its start waits for no other network
        async with self._changing:
            here = list(self._table.hosted())
            await self._filter(here, self._fold(here))

    async def unplug(self, local: LocalAllocation, leftover: list[AllocatedNic] | None = None) -> None:
        """Remove the allocation's ports, or only ``leftover`` ones; segments that nothing here needs any more go later. Raises
        WeftError."""
        nics = local.spec.nics if leftover is None else leftover
        async with self._changing:
            for port in ports_of(local, nics):
                await self._driver.unplug(port.id)
            others = [other for other in self._table.hosted() if other.uid != local.uid]
            needed = {nic.network_uid for other in others for nic in other.spec.nics} | self.handover.networks
            if leftover is not None:
                needed |= {nic.network_uid for nic in local.spec.nics}
            idle = await self._find_idle()
            for uid in sorted({nic.network_uid for nic in nics} - needed):
                idle[short_id(uid)] = Idle(uid, self._clock.elapsed() + IDLE_SECONDS)
        self.wake()

    async def clear_shared(self) -> None:
        """Remove the node's own ports of an earlier agent, but for those in the table. Raises WeftError."""
        kept = {port.id for local in self._table.egress.values() for port in ports_of(local)}
        async with self._changing:
            for port in (await self._driver.state()).shared:
                if port not in kept:
                    await self._driver.unplug(port)

    async def prepare_migration(self, local: LocalAllocation, peer_address: str = "") -> list[str]:
        """Either end of a migration, before the guest's memory is sent. Target: plug and filter its ports and return the
        interface names; the guest's traffic still goes to the source at ``peer_address``. Source: get ready for
        ``handover.switch_away``. May be repeated. Raises WeftError.

        Between clusters the two networks are apart: the target's ports are as those of a guest that runs here, and nothing is
        switched."""
        if is_between_clusters(local.spec.migration):
            return await self.plug(local) if local.spec.role == "target" else []
        if self.handover.expect(local, peer_address) == "in":
            return await self.plug(local)
        await self.refresh()
        return []

    async def keep(self) -> None:
        """Follow changes and repair for ever; failures are logged and tried again."""
        heal_at = self._clock.elapsed()
        while True:
            self._woken.clear()
            healing = self._clock.elapsed() >= heal_at
            steps = [self.refresh]
            if healing:  # after the refresh, or a pending change would pass for damage
                heal_at = self._clock.elapsed() + HEAL_SECONDS
                steps += [self._heal, self._end_hops, self._find_held, self._find_hosts]
            for step in steps:
                try:
                    await step()
                except (WeftError, OSError) as problem:
                    log.warning("network: %s", problem)
            wake_at = min([heal_at, *(idle.remove_at for idle in (self._idle or {}).values())])
            await wait_for_event(self._clock, self._woken, max(0.0, wake_at - self._clock.elapsed()))

    async def refresh(self) -> None:
        """Bring all hosted segments and published ports up to date. Raises the first problem, after trying all."""
        problems: list[WeftError] = []
        self.handover.follow()
        try:
            await self._save()
        except CheckpointFailed as problem:  # only an agent that starts without a server needs it
            log.warning("network: %s", problem.message)
        async with self._changing:
            here = self._table.hosted()
            for uid in {nic.network_uid for local in here for nic in local.spec.nics} | self.handover.networks:
                (await self._find_idle()).pop(short_id(uid), None)
            await self._remove_idle()
            try:
                await self._publish()  # first: published ports are not refused
            except WeftError as problem:
                problems.append(problem)
            await self._refuse(here)
            segments = self._fold(here)
            try:
                await self._filter(here, segments)
            except WeftError as problem:
                problems.append(problem)
            for uid, segment in segments.items():
                try:
                    await self._ensure(uid, segment)
                except WeftError as problem:
                    problems.append(problem)
            self._follow_services()
        self._note_departures(segments)
        if problems:
            raise problems[0]

    def _note_departures(self, segments: Collection[str]) -> None:
        """Note the service addresses that leave and receive nothing new from here. ``segments``: the networks that must be here.
        One without a segment sends nothing: its guests here are stopped, or have yet to be made."""
        departed = list[ServedAddress]()
        idle = self._idle or {}
        for uid in sorted(self._table.networks() - {*segments, *self._applied}):
            if short_id(uid) not in idle:
                known = self.service_addresses.by_network.get(uid, {}).values()
                departed += [one for one in known if one.leaving]
        for uid, segment in sorted(self._applied.items()):
            applied = {one.address: one for one in segment.services}
            known = self.service_addresses.by_network.get(uid, {}).values()
            departed += [one for one in known if one.leaving and applied.get(one.service.address) == one.service]
        if departed != self.departed:
            self.departed = departed
            self._reporter.wake()

    def _orphans(self) -> list[LocalAllocation]:
        return [state.local for state in self._table.orphans()]

    def _on_switched(self) -> None:
        """A guest has been switched: the driver's state may differ from what was applied."""
        self._applied.clear()
        self.wake()

    async def _end_hops(self) -> None:
        """Drop networks that guests left, once none of their connections leads through this node."""
        here, before = self._table.hosted(), self.handover.hops
        gone = await self.handover.end({nic.uid: local.spec.role for local in here for nic in local.spec.nics})
        if self.handover.hops != before:
            self.wake()
        needed = {nic.network_uid for local in here for nic in local.spec.nics}
        idle = await self._find_idle()
        for uid in sorted(gone - needed):
            idle[short_id(uid)] = Idle(uid, self._clock.elapsed() + IDLE_SECONDS)

    async def _find_idle(self) -> dict[str, Idle]:
        """The idle segments; at first, those that an earlier agent left here."""
        if self._idle is None:
            needed = {short_id(nic.network_uid) for local in self._table.hosted() for nic in local.spec.nics}
            needed |= {short_id(uid) for uid in self.handover.networks}
            left = set((await self._driver.state()).segments) - needed
            self._idle = {id: Idle("", self._clock.elapsed() + IDLE_SECONDS) for id in left}
        return self._idle

    async def _remove_idle(self) -> None:
        idle, now = await self._find_idle(), self._clock.elapsed()
        for id in [id for id, found in idle.items() if found.remove_at <= now]:
            uid = idle[id].uid
            self._applied.pop(uid, None)
            idle[id] = Idle(uid, now + IDLE_SECONDS)  # if the removal fails
            try:
                await self._driver.remove_segment(id)
                del idle[id]
            except WeftError as problem:
                log.warning("can't remove segment %s: %s", id, problem.message)

    async def _publish(self) -> None:
        forwards = keep_forwards(self._forwards.values(), self._faded_forwards.values(), self._orphans())
        if forwards != self._applied_forwards:
            await self._driver.ensure_forwards(forwards)
            self._applied_forwards = forwards

    async def _refuse(self, here: Iterable[LocalAllocation]) -> None:
        """Refuse guests the fabric's networks and nodes, while there are guests here."""
        own = {nic.cidr for local in here for nic in local.spec.nics}
        if not own and self._idle:
            return  # so that the next guest need not wait for it
        hosts = [*self._node_ranges, *self._place().ranges]
        refused = (sorted({*self._ranges, *own}), sorted(set(hosts))) if own else ([], [])
        if refused != self._applied_refused:
            await self._driver.ensure_refused(*refused)
            self._applied_refused = refused

    async def _filter(self, here: Iterable[LocalAllocation], segments: Mapping[str, Segment]) -> None:
        closed = self._table.find_closed(self._clock.now())
        filters = fold_filters(here, segments, closed)
        if filters != self._applied_filters:
            await self._driver.ensure_filters(filters)
            self._applied_filters = filters
        self._closed = closed

    async def _heal(self) -> None:
        async with self._changing:
            mended = await self._driver.heal()
        for phrase in mended:
            node = Ref("node", self._host.node, self._host.node_uid)
            self._reporter.put_event(node, "Warning", "NetworkHealed", phrase)

    async def _find_held(self) -> None:
        listening = frozenset((held.protocol, held.port) for held in await self._driver.find_held())
        published = frozenset((forward.protocol, forward.port) for forward in self._applied_forwards or ())
        before, self.held = self.held, fold_held(listening, self._listening, published | self._published)
        self._listening, self._published = listening, published
        if self.held != before:
            self._reporter.wake()

    async def _find_hosts(self) -> None:
        """This node's own addresses, and the server's as this node finds them."""
        addresses = await self._driver.find_addresses()
        if addresses != self.addresses:
            self.addresses = addresses
            self._reporter.wake()
        located = await asyncio.to_thread(locate, self._server_places, self._located)
        if located != self._located:
            self._located = located
            self.wake()

    def _place(self) -> ServerPlace:
        return join(self._server, self._located)

    async def _ensure(self, uid: str, segment: Segment) -> None:
        (await self._find_idle()).pop(segment.id, None)
        if self._applied.get(uid) != segment:
            self._applied.pop(uid, None)
            await self._driver.ensure_segment(segment)
            self._applied[uid] = segment
            self._follow_services()

    def _follow_services(self) -> None:
        taken = {uid: frozenset(rules.open) & {SYSLOG, TRACES} for uid, rules in self._rules.items()}
        self.services = {uid: (one, taken[uid]) for uid, one in self._applied.items() if taken.get(uid)}

    def _fold(self, here: Iterable[LocalAllocation]) -> dict[str, Segment]:
        networks_of_orphans = {nic.network_uid for orphan in self._orphans() for nic in orphan.spec.nics}
        neighbours = {uid: list(found.values()) for uid, found in self.neighbours.items()}
        for uid in networks_of_orphans:
            faded = self._faded_neighbours.get(uid, {})
            neighbours[uid] = list({**faded, **self.neighbours.get(uid, {})}.values())
        own, hops = self._host.underlay_address, self.handover.hops
        return fold_segments(here, neighbours, own, hops, self._rules, self._place(), self.service_addresses.by_network)

    async def _save(self) -> None:
        needed = {nic.network_uid for local in self._table.hosted() for nic in local.spec.nics} | self.handover.networks
        now = Surroundings(
            endpoints={
                uid: [found[a] for a in sorted(found)] for uid, found in self.neighbours.items() if uid in needed
            },
            forwards=[self._forwards[key] for key in sorted(self._forwards)],
            ranges_version=self._ranges_version,
            ranges=self._ranges,
            node_ranges=self._node_ranges,
            server=self._server,
            located=self._located,
            rules=self._rules,
            hops=self.handover.hops,
            services=self.service_addresses.list_of(needed),
            egress={uid: local.spec.nics[0] for uid, local in sorted(self._table.egress.items())},
        )
        if now != self._saved:
            await asyncio.to_thread(self._store.save_surroundings, now)
            self._saved = now
