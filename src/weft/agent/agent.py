"""One node: starts and ends its parts, reports it, and passes on the server's answers.

Starts from the checkpoints and from what the drivers find, so that guests are cared for whether or not a server answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from weft.agent.allocation.executor import StepExecutor
from weft.agent.allocation.orphans import copy_orphans, name_orphans
from weft.agent.allocation.supervisor import Allocations
from weft.agent.allocation.trace import StepTraces
from weft.agent.backup.images import ImageWork
from weft.agent.backup.work import BackupWork
from weft.agent.flow.flows import Flows
from weft.agent.flow.recorder import FlowRecorder
from weft.agent.function.egress_endpoints import EgressEndpoints
from weft.agent.guard.guests import GuardedGuests
from weft.agent.image.cache import ImageCache
from weft.agent.image.oci import ContainerImages
from weft.agent.logs.collector import LogCollector
from weft.agent.migration.credentials import Credentials
from weft.agent.migration.executor import MigrationExecutor
from weft.agent.migration.transport import TlsTransport, Transport
from weft.agent.network.executor import NetworkExecutor
from weft.agent.network.guest_services import GuestServices
from weft.agent.network.readiness import ReadinessChecks
from weft.agent.node.capabilities import Capabilities
from weft.agent.node.digest import DigestSource
from weft.agent.node.facts import inspect_machine
from weft.agent.node.link_load import LinkMeter
from weft.agent.node.proximity import Proximity
from weft.agent.node.usage import Meter
from weft.agent.orders.executor import Executor
from weft.agent.orders.table import OrderTable
from weft.agent.replication.merging import Merging
from weft.agent.replication.receiver import Receiver
from weft.agent.replication.sender import Sender
from weft.agent.replication.watching import Watching
from weft.agent.samples.files import SampleFiles
from weft.agent.secret.cache import Secrets
from weft.agent.secret.sealed import SealedSecrets
from weft.agent.secret.volume_keys import VolumeKeys
from weft.agent.server.client import Server
from weft.agent.server.outbox import Outbox
from weft.agent.server.readiness import ReadinessSource
from weft.agent.server.reporter import HEARTBEAT_SECONDS, Question, Reporter
from weft.agent.service.certificates import Certificates
from weft.agent.service.executor import Proxies
from weft.agent.snapshot.absorption import Absorption
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.trim import TrimWork
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.snapshot.work import VolumeWork
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.service import report_departures
from weft.agent.state.table import AllocationTable, FunctionHost
from weft.agent.state.wall_clock import WallClock
from weft.agent.tasks import Tasks
from weft.agent.template.claim import BootMemory
from weft.agent.template.library import TemplateLibrary
from weft.agent.template.often import AFTER
from weft.agent.trace.sender import SpanSender
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.watches import Change, Listed, Put, ServerWatches
from weft.agent.workload.kind import NodeParts
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciStore
from weft.contracts.driver.network import NetworkDriver
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.guard import GuardDriver
from weft.contracts.proxy import ProxyDriver
from weft.kinds.node import NODE, NodeReport
from weft.kinds.orders import ASK, BACKUP, MAKE_IMAGE, RECEIVE, SEND, TRIM, VOLUME, WARM
from weft.objects.errors import WeftError
from weft.objects.identity import Ref
from weft.protocol.report import EventType, ReportAnswer
from weft.telemetry.logs.store import MOST_AGE_SECONDS, MOST_BYTES, LogStore

log = logging.getLogger("weft.agent")
RUNTIME_RETRY_SECONDS = 1.0
SHORT_SILENCE_SECONDS = 2.0
BREATH_SECONDS = 0.02  # changes of guests come in bursts
HEAVY_AT_ONCE = 4  # concurrent disks and starts of one node


class Agent:
    """The agent of the node ``host``. ``wire`` connects it to other nodes; ``pools`` are the storage pools beside ``volumes``, by
    name; ``container_images`` stores images of containers; ``server_places`` are where it reaches the server, as HOST:PORT.
    ``warm_after``: see TemplateLibrary. ``log_bytes``, ``log_seconds``: how much of what is printed here is kept, and how long.
    ``traced``: what people's writes lead to here is recorded, and brought to the server. ``proxies`` None: HTTP services aren't
    served here; ``guard`` None: no guests run here that have to be held."""

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
        server_places: Sequence[str] = (),
        warm_after: int = AFTER,
        log_bytes: int = MOST_BYTES,
        log_seconds: float = MOST_AGE_SECONDS,
        traced: bool = False,
        proxies: ProxyDriver | None = None,
        guard: GuardDriver | None = None,
    ) -> None:
        self.host, self.runtimes = host, runtimes
        self._server, self._clock, self._network_driver = server, clock, network
        self._tasks, news = Tasks(), asyncio.Event()
        self.table, store = AllocationTable(), CheckpointStore(host.state_dir)
        folder = Path(host.state_dir)
        self.wall = WallClock(folder, clock)
        outbox = Outbox(
            folder,
            clock,
            self.wall,
            boot_id=inspect_machine().boot_id,
            node=Ref(NODE.name, host.node, host.node_uid, None),
        )
        self._reporter = Reporter(host.node, server, clock, news, outbox)
        self.readiness = ReadinessSource(host, server.line, self._reporter, self.wall, clock)
        self.pools = Pools(volumes, pools or {}, clock, news)
        self._volumes = Volumes(self.pools, self.table, self._reporter, clock, self._tasks)
        turns = DiskTurns()
        self._snapshots = KeptSnapshots(host.state_dir, self.pools, self.table, self._reporter, clock, self._tasks)
        self.images = ImageCache(host.state_dir, server, self.table)
        self._absorption = Absorption(
            *(self.pools, self._volumes, self.table, runtimes, self.images),
            *(self._snapshots, turns, self._reporter, clock),
        )
        self._container_images = ContainerImages(container_images, self.images, self.table, clock)
        self._guarded = GuardedGuests(guard, self.table, self._reporter, clock)
        self._network = NetworkExecutor(
            network, host, store, clock, self.table, runtimes, self._reporter, server_places
        )
        self.recorded_flows = FlowRecorder(
            Path(host.state_dir), host.node_uid, network, self.table, self._network.neighbours, clock
        )
        self.flows = Flows(network, self.table.find, self._network.neighbours, clock, self.recorded_flows)
        self._watches = ServerWatches(server, self._network, self.table)
        self.egress_endpoints = EgressEndpoints(host, server, self._network, self._watches, self.table, self._reporter)
        wire = wire or TlsTransport(Credentials(host.state_dir), clock)
        self.samples = SampleFiles(Path(host.state_dir) / "samples")
        lines = LogStore(Path(host.state_dir) / "logs", clock, log_bytes, log_seconds)
        self.logs = LogCollector(lines, runtimes, self.table, host.node, host.node_uid, clock)
        self._migrations = MigrationExecutor(
            host, runtimes, self._network, self.pools, self.samples, wire, clock, self.logs, self.recorded_flows
        )
        self._secrets = Secrets(server, host.node, SealedSecrets(folder), clock)
        secrets, heavy = self._secrets, asyncio.Semaphore(HEAVY_AT_ONCE)
        self._keys = keys = VolumeKeys(server, host.node)
        memory = BootMemory(host.capacity.memory_bytes, self.table, clock, self._reporter.deliver, self._reporter.wake)
        self._templates = TemplateLibrary(
            host.state_dir,
            runtimes.machines,
            volumes,
            self.images,
            clock,
            heavy,
            memory,
            self._reporter.wake,
            after=warm_after,
        )
        backups = BackupWork(
            *(host.state_dir, host.node, server, self.pools, self.images, self.table, runtimes, clock),
            taken_in=self._snapshots.wake,
        )
        images = ImageWork(host.state_dir, host.node, server, self.pools, self.images, clock)
        self.receiver = Receiver(self.pools, clock, self._reporter.wake, self._snapshots.wake)
        self._merging = Merging(self.pools, turns, clock)
        volume_work = VolumeWork(self.pools, self._volumes, self._snapshots, self.table, turns, clock)
        self._volume_orders = Executor(VOLUME, volume_work, host.state_dir, clock, self._reporter.wake)
        sender = Sender(host.node, server, self.pools, self.images, clock)
        self._orders = OrderTable(
            {
                BACKUP.name: Executor(BACKUP, backups, host.state_dir, clock, self._reporter.wake),
                VOLUME.name: self._volume_orders,
                TRIM.name: Executor(
                    TRIM, TrimWork(self.pools, self.table, runtimes), host.state_dir, clock, self._reporter.wake
                ),
                MAKE_IMAGE.name: Executor(MAKE_IMAGE, images, host.state_dir, clock, self._reporter.wake),
                SEND.name: Executor(SEND, sender, host.state_dir, clock, self._reporter.wake),
                ASK.name: Watching(host.node, server, clock, self._reporter.wake),
                RECEIVE.name: self.receiver,
                WARM.name: self._templates,
            }
        )
        parts = NodeParts(
            self.images,
            self._container_images,
            secrets,
            keys,
            self.pools,
            self._volumes,
            self._templates,
            heavy,
            self.logs,
            clock,
        )
        self.spans = SpanSender(Path(host.state_dir) / "traces", host.node, server, clock) if traced else None
        self.tracer = self.spans.tracer if self.spans is not None else None
        self._guest_services = GuestServices(network, self.table, self.logs.inbox, self.tracer, clock)
        services = self._network.service_addresses
        self._readiness = ReadinessChecks(network, services.by_network, self.table, runtimes, clock)
        self.proxies = Proxies(
            *(proxies, network, services.by_network, self.egress_endpoints, self.table),
            *(Certificates(host.state_dir, host.node, server, clock), clock, self._reporter.wake),
        )
        services.watchers += [self._readiness.wake, self.proxies.wake]
        steps = StepTraces(self.tracer)
        executor = StepExecutor(host, runtimes, self._network, self._migrations, parts, self._snapshots, turns, steps)
        self.allocations = Allocations(self.table, store, executor, self._reporter, clock, self._tasks)
        self._link = LinkMeter(host.underlay_link)
        place = host.underlay_address, host.echo_port
        self._proximity = Proximity(host.node_uid, *place, clock, news, find_load=self._link.find_share)
        self._meter = Meter(host, runtimes, self.pools, clock, self.table, news)
        self.digests = DigestSource(
            *(self._meter, self.table, self._proximity, self._link, self._network),
            *(self.recorded_flows, self.proxies, self._guarded, clock),
        )
        self._capabilities = Capabilities(host, runtimes, network, clock, news)

    async def start(self) -> None:
        """Find the guests that are here, then follow the server. Returns once all guests are known."""
        self.logs.own.begin()  # also what is said of the guests that it finds
        await self._templates.begin()
        run = await self.allocations.take_up()
        log.info("node %s has %d allocations and %d running guests", self.host.node, len(self.table.states), run)
        self.allocations.begin()
        self.proxies.recall(self._network.egress_before)
        await self._clear_egress_endpoints()
        parts = (self._network, self._proximity, self._meter, self.pools, self._volumes, self.egress_endpoints)
        disks = (self._snapshots, self._absorption)
        for part in (
            *parts,
            *disks,
            self.logs,
            self.recorded_flows,
            self._orders,
            self._merging,
            self._guarded,
        ):
            self._tasks.spawn(part.keep())
        if self.spans is not None:
            self._tasks.spawn(self.spans.keep())
        self._tasks.spawn(self._secrets.keep(lambda: [state.local for state in self.table]))
        self._tasks.spawn(self._readiness.keep())
        self._tasks.spawn(self.proxies.keep())
        self._tasks.spawn(self._guest_services.keep(lambda: self._network.services))
        self._tasks.spawn(self._follow_runtime())
        self._tasks.spawn(self._introduce())
        self._tasks.spawn(self.allocations.listen())
        own = {"node": self.host.node_uid}
        self._watches.follow("allocations", "allocation", own, self._on_allocation, self._reporter.wake)
        self._watches.follow("snapshots", "snapshot", {}, self._snapshots.note)
        self._watches.follow_published_ports()
        self._watches.follow_networks()
        self._reporter.contact.ask = self._list_own
        self.readiness.has_started = True

    async def run(self) -> None:
        """Run until cancelled. Raises the error of a part that failed."""
        await self._tasks.failed

    async def close(self) -> None:
        """End the agent's own work and close the drivers; guests, networks and disks stay as they are."""
        self._watches.end_all()
        self._server.close()
        self._secrets.close()
        self._keys.close()
        await self._tasks.close()
        try:
            await self.egress_endpoints.close()  # the instances behind them have ended
        except WeftError as problem:
            log.warning("network: %s", problem)
        await self._migrations.close()
        await self._container_images.close()
        self.images.close()
        self._reporter.close()
        self.logs.own.close()
        await self.runtimes.close()
        await self._network_driver.close()

    def serve_functions(self, functions: FunctionHost) -> None:
        """From now on this node runs functions too."""
        self.table.functions = functions

    def put_event(self, object: Ref, type_: EventType, reason: str, message: str) -> None:
        """Bring an event of ``object`` to the log and the journal."""
        self._reporter.put_event(object, type_, reason, message)

    # --- ReportSource -------------------------------------------------------------------------------------------------

    async def save_before_report(self) -> None:
        await self.allocations.save_orphans()

    def make_node_report(self) -> NodeReport:
        orphans, functions = self.table.orphans(), self.table.functions
        unexplained = [(guest, self.runtimes.kind_of(guest.id)) for guest in self.table.unexplained()]
        report = self._capabilities.report(self._proximity.nearness)
        return msgspec.structs.replace(
            report,
            problems=[*report.problems, *self.proxies.troubles],
            images=self.images.list(),
            volumes=sorted(self._volumes.uids),
            snapshots=self._snapshots.snapshots,
            booted=self._templates.explain(),
            booting_memory=self.table.booting_bytes,
            orders=self._orders.report(),
            orphans=name_orphans(orphans, unexplained),
            orphan_allocations=copy_orphans(orphans),
            epoch=self.allocations.epoch,
            pools=self.pools.facts,
            functions=functions.report() if functions is not None else {},
            departed=report_departures(
                one for one in self._network.departed if not one.service.proxied or self.proxies.has_departed(one)
            ),
            egress_endpoints=self.egress_endpoints.networks(),
            addresses=self._network.addresses,
            contact=self._reporter.contact.token,
            guards=self._guarded.describe(),
            guard=self._guarded.ability,
        )

    @property
    def longest_silence_seconds(self) -> float:
        """Only the server's answers name what to remove: report often while anything here could be removed."""
        are_to_go = self._volumes.unattached or self._snapshots.are_to_go or self._network.ask().idle_networks
        is_asking = are_to_go or self._orders.is_asking or self._guarded.are_some
        return SHORT_SILENCE_SECONDS if is_asking else HEARTBEAT_SECONDS

    def make_question(self) -> Question:
        return msgspec.structs.replace(
            self._network.ask(),
            heard=self._watches.cursor_of("allocations"),
            peers_version=self._proximity.version,
            digest=self.digests.make(),
        )

    def take_answer(self, answer: ReportAnswer) -> None:
        if answer.peers is not None:
            self._proximity.put_peers(answer.peers)
        if answer.ranges is not None:
            self._network.put_ranges(answer.ranges_version, answer.ranges, answer.node_ranges, answer.server)
        self._network.put_networks(answer.networks, answer.gone_networks)
        self.allocations.supersede(answer.superseded, answer.stale_volumes)
        self._orders.put(answer.orders)
        in_use = self._volume_orders.under_way
        volumes = {volume.uid for order in in_use for volume in order.volumes}
        self._volumes.let_go(uid for uid in answer.remove_volumes if uid not in volumes)
        snapshots = {order.snapshot for order in in_use}
        self._snapshots.let_go(uid for uid in answer.remove_snapshots if uid not in snapshots)
        self._guarded.take_stamps(answer.stamps)

    def note_contact(self) -> None:
        self.allocations.wake()
        self._secrets.wake()

    # ------------------------------------------------------------------------------------------------------------------

    def _on_allocation(self, change: Change) -> None:
        if self.allocations.put(change):
            self._guarded.wake()
            self._watches.follow_networks()
            self._network.wake()
            self._readiness.wake()

    def _list_own(self) -> None:
        """List this node's allocations once, for its contact; the watch of them may be behind."""
        own, token = set[str](), self._reporter.contact.token

        def take(change: Change) -> None:
            if isinstance(change, Put) and change.envelope.deleting_since is None:
                own.add(change.envelope.name)
            elif isinstance(change, Listed):
                self._watches.end("own allocations")
                self._reporter.contact.note_list(token, own)
                self.allocations.wake()

        self._watches.follow("own allocations", "allocation", {"node": self.host.node_uid}, take)

    async def _introduce(self) -> None:
        """Inspect what this node can do, then report for ever; its guests don't wait for this."""
        await self._volumes.find()
        await self._snapshots.refresh()
        await self.pools.refresh()
        await self._capabilities.inspect()
        self._tasks.spawn(self._capabilities.keep())
        self._reporter.wake()
        await self._reporter.run(self)

    async def _clear_egress_endpoints(self) -> None:
        try:
            await self._network.clear_shared()
        except WeftError as problem:
            log.warning("network: %s", problem)

    async def _follow_runtime(self) -> None:
        while True:
            try:
                await self.runtimes.changed()
            except WeftError as problem:
                log.warning("runtime: %s", problem.message)
                await self._clock.sleep(RUNTIME_RETRY_SECONDS)
            self.allocations.wake()
            await self.allocations.review_unexplained()
            await self._clock.sleep(BREATH_SECONDS)
