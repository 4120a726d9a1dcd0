"""One node: wires its parts together, begins and ends them, and carries what the server answers to whom it is for.

Starts from the durable copies and from what the drivers find, so that guests are cared for whether or not a server
answers. Woken by feed, drivers and clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Set
from typing import Any

import msgspec

from weft.agent.allocation import resource_use
from weft.agent.allocation.executor import StepExecutor
from weft.agent.allocation.orphans import FoundGuests, copy_orphans, name_orphans
from weft.agent.allocation.supervisor import Allocations
from weft.agent.allocation.worker import Worker
from weft.agent.function.egress_endpoints import EgressEndpoints
from weft.agent.function.invocations import Functions
from weft.agent.image.cache import ImageCache
from weft.agent.image.oci import ContainerImages
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.migration.transport import TlsTransport, Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.node import facts
from weft.agent.node.capabilities import Capabilities
from weft.agent.node.proximity import Proximity
from weft.agent.node.usage import Meter
from weft.agent.secret.cache import Secrets
from weft.agent.server.client import Server
from weft.agent.server.reporter import HEARTBEAT_SECONDS, Question, Reporter
from weft.agent.server.watch import Told
from weft.agent.state.allocation import LocalAllocation, MigrationState
from weft.agent.state.checkpoint import Checkpoint, CheckpointStore
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.watches import ServerWatches
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciStore
from weft.contracts.driver.network import NetworkDriver
from weft.contracts.driver.volume import VolumeDriver
from weft.kinds.node import NodeReport
from weft.objects.errors import WeftError
from weft.objects.identity import Ref
from weft.protocol.heartbeat import Digest
from weft.protocol.report import EventType, NodeEvent, ReportAnswer

log = logging.getLogger("weft.agent")
RUNTIME_RETRY_SECONDS = 1.0
SHORT_SILENCE_SECONDS = 2.0
BREATH_SECONDS = 0.02  # changes of guests come in bursts


class Agent:
    """The agent of the node that ``host`` describes, over these drivers and this server; ``wire`` is the way to other nodes,
    ``pools`` where disks may lie besides in ``volumes``, by name, ``container_images`` where images of containers are kept."""

    def __init__(
        self,
        host: Host,
        server: Server,
        runtimes: Runtimes,
        network: NetworkDriver,
        volumes: VolumeDriver,
        clock: Clock,
        wire: Transport | None = None,
        pools: Mapping[str, VolumeDriver] | None = None,
        container_images: OciStore | None = None,
    ) -> None:
        self.host = host
        self.runtimes = runtimes
        self._server, self._clock = server, clock
        self._network_driver = network
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._functions: Functions | None = None
        self._reporter = Reporter(
            host.node,
            server,
            clock,
            self._keep_orphans,
            self._make_node_report,
            self._longest_silence,
            self._ask,
            self._on_answer,
        )
        copies, self._found = CheckpointStore(host.state_dir), FoundGuests(runtimes)
        self.allocations = allocations = Allocations(
            copies,
            self._found,
            self._reporter,
            clock,
            lambda copy: self._make_worker(copy, copies),
            self._spawn,
            self._on_event,
            self._on_related,
        )
        self._pools = Pools(volumes, pools or {}, clock, self._reporter.wake)
        self._volumes = Volumes(
            self._pools, self._reporter, clock, lambda: resource_use.find_volumes(allocations.workers), self._spawn
        )
        self.images = ImageCache(host.state_dir, server, self._used_images)
        self._container_images = ContainerImages(container_images, self.images, self._used_container_images, clock)
        self._network = NetworkExecutor(
            network,
            host,
            copies,
            clock,
            self._hosted,
            self._orphans,
            self._on_network_healed,
            runtimes.in_namespace,
            self._reporter.wake,
        )
        self._following = ServerWatches(server, self._network, self._on_network)
        self.egress_endpoints = EgressEndpoints(
            host,
            self._network,
            lambda project, uid: server.ask_egress_endpoint(host.node, project, uid),
            self._on_egress_endpoint,
            self._following.hear_network,
        )
        self._movers = MigrationExecutor(
            host,
            runtimes,
            self._network,
            self._pools,
            wire or TlsTransport(Credentials(host.state_dir), clock),
            clock,
            self._on_part,
            allocations.look,
            allocations.keep_store,
        )
        self._performer = StepExecutor(
            host,
            runtimes,
            self._pools,
            self._volumes,
            self._network,
            self.images,
            self._container_images,
            self._movers,
            Secrets(lambda allocation: server.read_secrets(host.node, allocation)),
            clock,
        )
        self._proximity = Proximity(host.node_uid, host.underlay_address, host.echo_port, clock, self._reporter.wake)
        self._meter = Meter(
            host, runtimes, self._pools, clock, allocations.guests, allocations.unexplained, self._reporter.wake
        )
        self._abilities = Capabilities(host, runtimes, network, clock)

    async def start(self) -> None:
        """Take up what is here already; then follow the server. Returns once all guests are known."""
        await self.allocations.take_up()
        run = await self._found.recover()
        log.info("node %s: %d allocations known, %d guests run", self.host.node, len(self.allocations.workers), run)
        self.allocations.begin()
        await self._clear_egress_endpoints()
        self._spawn(self._network.keep())
        self._spawn(self._follow_runtime())
        self._spawn(self._proximity.keep())
        self._spawn(self._meter.keep())
        self._spawn(self._pools.keep())
        self._spawn(self._volumes.keep())
        self._spawn(self._introduce())
        self._spawn(self.allocations.listen())
        self._following.follow("allocations", "allocation", {"node": self.host.node_uid}, self._on_allocation)
        self._following.follow_published_ports()
        self._follow_networks()

    async def _clear_egress_endpoints(self) -> None:
        try:
            await self._network.clear_shared()
        except WeftError as problem:
            log.warning("network: %s", problem)

    async def _introduce(self) -> None:
        """Find out what this node can do, then report for ever; its guests don't wait for that."""
        await self._volumes.find()
        await self._pools.look()
        await self._abilities.find_out()
        self._spawn(self._abilities.keep(self._reporter.wake))
        self._reporter.wake()
        await self._reporter.tell()

    async def run(self) -> None:
        """Until cancelled. Raises what a part of the agent died of."""
        await self._failed

    async def close(self) -> None:
        """End the agent's own work and let go of the drivers; guests, networks and disks stay as they are."""
        self._following.end()
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.egress_endpoints.close()  # whoever stood behind them has ended
        except WeftError as problem:
            log.warning("network: %s", problem)
        await self._movers.close()
        await self._container_images.close()
        self.images.close()
        self._reporter.close()
        await self.runtimes.close()
        await self._network_driver.close()

    def serve_functions(self, functions: Functions) -> None:
        """Tell them whenever allocations may take more room, and the server what they run."""
        self._functions = functions

    def _make_worker(self, copy: Checkpoint, copies: CheckpointStore) -> Worker:
        return Worker(
            copy, self._performer, copies, self._clock, self._reporter.put, self._on_event, self.allocations.relate
        )

    def _on_allocation(self, told: Told) -> None:
        if self.allocations.put(told):
            self._follow_networks()
            self._network.wake()

    def _on_related(self) -> None:
        if self._functions is not None:
            self._functions.on_room()

    def _hosted(self) -> list[LocalAllocation]:
        """What has NICs here: guests, and the node itself where functions reach a network."""
        return resource_use.list_hosted(self.allocations.workers) + self.egress_endpoints.hosted()

    def _orphans(self) -> list[LocalAllocation]:
        return resource_use.list_orphans(self.allocations.workers)

    def _follow_networks(self) -> None:
        needed = resource_use.find_networks(self.allocations.workers)
        self._following.follow_networks(
            needed | self._network.handover.networks | set(self.egress_endpoints.networks())
        )

    def _on_network(self, uid: str, addresses: Set[str]) -> None:
        self._spawn(self.egress_endpoints.confirm(uid, addresses))

    def _on_egress_endpoint(self) -> None:
        self._follow_networks()
        self._reporter.wake()

    async def _follow_runtime(self) -> None:
        while True:
            try:
                await self.runtimes.changed()
            except WeftError as problem:
                log.warning("runtime: %s", problem.message)
                await self._clock.sleep(RUNTIME_RETRY_SECONDS)
            self.allocations.look()
            await self.allocations.review_unexplained()
            await self._clock.sleep(BREATH_SECONDS)

    def _used_images(self) -> set[str]:
        """All, while there is a guest nobody knows the wish of."""
        if self.allocations.unexplained():
            return set(self.images.list())
        return resource_use.find_images(self.allocations.workers)

    def _used_container_images(self) -> set[str] | None:
        if self.allocations.unexplained():
            return None
        functions = self._functions.used_images() if self._functions is not None else set()
        return (resource_use.find_container_images(self.allocations.workers) | functions) - {""}

    async def _keep_orphans(self) -> None:
        await self.allocations.keep_orphans()

    def _make_node_report(self) -> NodeReport:
        strangers = [(guest, self.runtimes.kind_of(guest.id)) for guest in self.allocations.unexplained()]
        return facts.make_report(
            self.host,
            self._abilities.machine,
            self._abilities.hardware,
            self._proximity.nearness,
            self._abilities.runtimes,
            self._abilities.network,
            self.images.list(),
            sorted(self._volumes.uids),
            name_orphans(self._orphans(), strangers),
            copy_orphans(resource_use.describe_orphans(self.allocations.workers)),
            self.allocations.epoch,
            self._pools.facts,
            self._functions.report() if self._functions is not None else {},
            self.egress_endpoints.networks(),
        )

    def _on_event(self, wanted: LocalAllocation, type_: EventType, reason: str, message: str) -> None:
        log.info("%s: %s: %s", wanted.what, reason, message)
        self._reporter.put_event(NodeEvent(type_, reason, message, wanted.spec.workload))

    def _on_part(self, uid: str, part: MigrationState) -> Awaitable[None]:
        keeping = asyncio.ensure_future(self.allocations.keep_part(uid, part))
        keeping.add_done_callback(_log_failure)
        return keeping

    def _on_network_healed(self, mended: list[str]) -> None:
        node = Ref("node", self.host.node, self.host.node_uid)
        for phrase in mended:
            log.warning("network healed: %s", phrase)
            self._reporter.put_event(NodeEvent("Warning", "NetworkHealed", phrase, node))

    def _longest_silence(self) -> float:
        """A server says only in its answers what to remove: ask often while there is any that it might mean."""
        is_asking = self._volumes.unattached or self._network.ask().idle_networks
        return SHORT_SILENCE_SECONDS if is_asking else HEARTBEAT_SECONDS

    def _ask(self) -> Question:
        return msgspec.structs.replace(
            self._network.ask(),
            heard=self._following.heard("allocations"),
            peers_version=self._proximity.version,
            digest=self._make_digest(),
        )

    def _make_digest(self) -> Digest:
        """What guests use, if that can be measured, which instances of functions there are, and which ports are held."""
        digest = self._meter.digest() or Digest(measured=False)
        if self._functions is not None:
            digest = msgspec.structs.replace(digest, instances=self._functions.count())
        return msgspec.structs.replace(digest, held=self._network.held)

    def _on_answer(self, answer: ReportAnswer) -> None:
        if answer.peers is not None:
            self._proximity.put_peers(answer.peers)
        if answer.ranges is not None:
            self._network.put_ranges(answer.ranges_version, answer.ranges, answer.node_ranges)
        self._network.drop_networks(answer.gone_networks)
        self.allocations.supersede(set(answer.superseded), set(answer.stale_volumes))
        self._volumes.let_go(answer.remove_volumes)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        problem = task.exception()
        if problem is not None and not self._failed.done():
            self._failed.set_exception(problem)


def _log_failure(keeping: asyncio.Future[None]) -> None:
    if not keeping.cancelled() and (problem := keeping.exception()) is not None:
        log.warning("%s", problem)
