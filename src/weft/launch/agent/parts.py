"""The parts of a node's agent: how they are connected, and what each of them offers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.agent.agent import AgentPart
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
from weft.agent.server.reporter import Reporter
from weft.agent.service.certificates import Certificates
from weft.agent.service.executor import Proxies
from weft.agent.snapshot.absorption import Absorption
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.trim import TrimWork
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.snapshot.work import VolumeWork
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.service import report_departures
from weft.agent.state.table import AllocationTable
from weft.agent.state.wall_clock import WallClock
from weft.agent.tasks import Tasks
from weft.agent.template.claim import BootMemory
from weft.agent.template.library import TemplateLibrary
from weft.agent.template.often import AFTER
from weft.agent.trace.sender import SpanSender
from weft.agent.upgrade.renewal import RebootWork, Renewal
from weft.agent.upgrade.work import UpgradeWork
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.watches import ServerWatches
from weft.agent.workload.kind import NodeParts
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.contracts.driver.image import OciStore
from weft.contracts.driver.network import NetworkDriver
from weft.contracts.driver.volume import VolumeDriver
from weft.contracts.guard import GuardDriver
from weft.contracts.machine.packages import PackageInstaller
from weft.contracts.machine.reboot import MachineReboot
from weft.contracts.proxy import ProxyDriver
from weft.kinds.node import NODE, NodeReport
from weft.kinds.orders import ASK, BACKUP, MAKE_IMAGE, REBOOT, RECEIVE, SEND, TRIM, UPGRADE, VOLUME, WARM
from weft.objects.errors import WeftError
from weft.objects.identity import Ref
from weft.protocol.report import ReportAnswer
from weft.telemetry.logs.store import MOST_AGE_SECONDS, MOST_BYTES, LogStore

log = logging.getLogger("weft.agent")
HEAVY_AT_ONCE = 4  # concurrent disks and starts of one node


class AgentParts:
    """Those of the node ``host``. ``wire`` connects it to other nodes; ``pools`` are the storage pools beside ``volumes``, by
    name; ``container_images`` stores images of containers; ``server_places`` are where it reaches the server, as HOST:PORT.
    ``warm_after``: see TemplateLibrary. ``log_bytes``, ``log_seconds``: how much of what is printed here is kept, and how long.
    ``traced``: what people's writes lead to here is recorded, and brought to the server. ``proxies`` None: HTTP services aren't
    served here; ``guard`` None: no guests run here that have to be held; ``installer`` None: upgrades leave this machine alone;
    ``reboot`` None: nobody reboots it."""

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
        installer: PackageInstaller | None = None,
        reboot: MachineReboot | None = None,
    ) -> None:
        self.host, self.tasks, news = host, Tasks(), asyncio.Event()
        self.on_gateways: Callable[[Sequence[str]], None] = lambda gateways: None  # as each answer names them
        self._server, self._runtimes, self._network_driver = server, runtimes, network
        self.table, store = AllocationTable(), CheckpointStore(host.state_dir)
        folder = Path(host.state_dir)
        self.wall = WallClock(folder, clock)
        node = Ref(NODE.name, host.node, host.node_uid, None)
        outbox = Outbox(folder, clock, self.wall, boot_id=inspect_machine().boot_id, node=node)
        read_time = guard.read_time if guard is not None else clock.elapsed
        self.reporter = Reporter(host.node, server, clock, news, outbox, read_time)
        self.readiness = ReadinessSource(host, server.line, self.reporter, self.wall, clock)
        self.pools = Pools(volumes, pools or {}, clock, news)
        self._volumes = Volumes(self.pools, self.table, self.reporter, clock, self.tasks)
        turns = DiskTurns()
        self._snapshots = KeptSnapshots(host.state_dir, self.pools, self.table, self.reporter, clock, self.tasks)
        self.images = ImageCache(host.state_dir, server, self.table)
        self._absorption = Absorption(
            *(self.pools, self._volumes, self.table, runtimes, self.images),
            *(self._snapshots, turns, self.reporter, clock),
        )
        self._container_images = ContainerImages(container_images, self.images, self.table, clock)
        self._guarded = GuardedGuests(guard, self.table, self.reporter, clock)
        self._network = NetworkExecutor(network, host, store, clock, self.table, runtimes, self.reporter, server_places)
        self.recorded_flows = FlowRecorder(folder, host.node_uid, network, self.table, self._network.neighbours, clock)
        self.flows = Flows(network, self.table.find, self._network.neighbours, clock, self.recorded_flows)
        self.watches = ServerWatches(server, self._network, self.table)
        self.egress_endpoints = EgressEndpoints(host, server, self._network, self.watches, self.table, self.reporter)
        wire = wire or TlsTransport(Credentials(host.state_dir), clock)
        self.samples = SampleFiles(folder / "samples")
        lines = LogStore(folder / "logs", clock, log_bytes, log_seconds)
        self.logs = LogCollector(lines, runtimes, self.table, host.node, host.node_uid, clock)
        self._migrations = MigrationExecutor(
            *(host, runtimes, self._network, self.pools, self.samples, wire, clock),
            *(self.logs, self.recorded_flows, self.reporter),
        )
        self._secrets = Secrets(server, host.node, SealedSecrets(folder), clock)
        self._keys = VolumeKeys(server, host.node)
        heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        memory = BootMemory(host.capacity.memory_bytes, self.table, clock, self.reporter.deliver, self.reporter.wake)
        self._templates = TemplateLibrary(
            *(host.state_dir, runtimes.machines, volumes, self.images, clock, heavy, memory, self.reporter.wake),
            after=warm_after,
        )
        of_node = host.state_dir, clock, self.reporter.wake
        backups = BackupWork(
            *(host.state_dir, host.node, server, self.pools, self.images, self.table, runtimes, clock),
            taken_in=self._snapshots.wake,
        )
        images = ImageWork(host.state_dir, host.node, server, self.pools, self.images, clock)
        self.receiver = Receiver(self.pools, clock, self.reporter.wake, self._snapshots.wake)
        self._merging = Merging(self.pools, turns, clock)
        volume_work = VolumeWork(self.pools, self._volumes, self._snapshots, self.table, turns, clock)
        self._volume_orders = Executor(VOLUME, volume_work, *of_node)
        sender = Sender(host.node, server, self.pools, self.images, clock)
        self._orders = OrderTable(
            {
                BACKUP.name: Executor(BACKUP, backups, *of_node),
                VOLUME.name: self._volume_orders,
                TRIM.name: Executor(TRIM, TrimWork(self.pools, self.table, runtimes), *of_node),
                MAKE_IMAGE.name: Executor(MAKE_IMAGE, images, *of_node),
                SEND.name: Executor(SEND, sender, *of_node),
                ASK.name: Watching(host.node, server, clock, self.reporter.wake),
                RECEIVE.name: self.receiver,
                WARM.name: self._templates,
                UPGRADE.name: Executor(UPGRADE, UpgradeWork(installer, server, clock), *of_node),
                REBOOT.name: Executor(REBOOT, RebootWork(reboot, host.state_dir, self.table, clock), *of_node),
            }
        )
        parts = NodeParts(
            *(self.images, self._container_images, self._secrets, self._keys, self.pools, self._volumes),
            *(self._templates, heavy, self.logs, clock),
        )
        self._spans = SpanSender(folder / "traces", host.node, server, clock) if traced else None
        self.tracer = self._spans.tracer if self._spans is not None else None
        self._guest_services = GuestServices(network, self.table, self.logs.inbox, self.tracer, clock)
        services = self._network.service_addresses
        self._readiness = ReadinessChecks(network, services.by_network, self.table, runtimes, clock)
        self._proxies = Proxies(
            *(proxies, network, services.by_network, self.egress_endpoints, self.table),
            *(Certificates(host.state_dir, host.node, server, clock), clock, self.reporter.wake),
        )
        services.watchers += [self._readiness.wake, self._proxies.wake]
        steps = StepTraces(self.tracer)
        executor = StepExecutor(host, runtimes, self._network, self._migrations, parts, self._snapshots, turns, steps)
        self.allocations = Allocations(self.table, store, executor, self.reporter, clock, self.tasks)
        self._link = LinkMeter(host.underlay_link)
        place = host.underlay_address, host.echo_port
        self._proximity = Proximity(host.node_uid, *place, clock, news, find_load=self._link.find_share)
        self._meter = Meter(host, runtimes, self.pools, clock, self.table, news)
        self.digests = DigestSource(
            *(self._meter, self.table, self._proximity, self._link, self._network),
            *(self.recorded_flows, self._proxies, self._guarded, clock),
        )
        self._capabilities = Capabilities(host, runtimes, network, clock, news)
        self._renewal = Renewal(reboot, self.table, runtimes, clock, news)

    def list_parts(self) -> Sequence[AgentPart]:
        """The parts in the order in which they start, report, and take answers."""
        network, proximity, guarded, proxies = self._network, self._proximity, self._guarded, self._proxies
        return (
            AgentPart(report=self._describe_machine),
            AgentPart(report=lambda: {"contact": self.reporter.contact.token}),
            AgentPart(ask=lambda: {"heard": self.watches.cursor_of("allocations")}),
            AgentPart(take_answer=lambda answer: self.on_gateways(answer.gateways)),
            AgentPart(
                keep=network.keep,
                report=lambda: {"departed": self._list_departed(), "addresses": network.addresses},
                ask=network.ask,
                take_answer=network.take_answer,
                is_asking=lambda: network.idle,
                wake=network.wake,
            ),
            AgentPart(
                keep=proximity.keep, ask=lambda: {"peers_version": proximity.version}, take_answer=proximity.take_answer
            ),
            AgentPart(keep=self._meter.keep, ask=lambda: {"digest": self.digests.make()}),
            AgentPart(keep=self.pools.keep, report=lambda: {"pools": self.pools.facts}),
            AgentPart(
                keep=self._volumes.keep,
                report=lambda: {"volumes": sorted(self._volumes.uids)},
                is_asking=lambda: self._volumes.unattached,
            ),
            AgentPart(
                keep=self.egress_endpoints.keep, report=lambda: {"egress_endpoints": self.egress_endpoints.networks()}
            ),
            AgentPart(
                keep=self._snapshots.keep,
                report=lambda: {"snapshots": self._snapshots.snapshots},
                is_asking=lambda: self._snapshots.are_to_go,
            ),
            AgentPart(keep=self._absorption.keep),
            AgentPart(keep=self.logs.keep),
            AgentPart(keep=self.recorded_flows.keep),
            # Before volumes are let go: an allocation that this ends has none any more.
            AgentPart(
                report=self._describe_orphans,
                take_answer=lambda answer: self.allocations.supersede(answer.superseded, answer.stale_volumes),
                note_contact=self.allocations.wake,
            ),
            AgentPart(
                keep=self._orders.keep,
                report=lambda: {"orders": self._orders.report()},
                take_answer=lambda answer: self._orders.put(answer.orders),
                is_asking=lambda: self._orders.is_asking,
            ),
            AgentPart(take_answer=self._let_go),  # of nothing that the newest orders still need
            AgentPart(keep=self._merging.keep),
            AgentPart(
                keep=guarded.keep,
                report=lambda: {"guards": guarded.describe(), "guard": guarded.ability},
                take_answer=guarded.take_answer,
                is_asking=lambda: guarded.are_some,
                is_renewing=lambda: guarded.end_if_lost,
                wake=guarded.wake,
            ),
            AgentPart(keep=self._spans.keep if self._spans is not None else None),
            AgentPart(
                keep=lambda: self._secrets.keep(lambda: [state.local for state in self.table]),
                note_contact=self._secrets.wake,
            ),
            AgentPart(keep=self._readiness.keep, wake=self._readiness.wake),
            AgentPart(keep=proxies.keep),
            AgentPart(keep=lambda: self._guest_services.keep(lambda: network.services)),
            AgentPart(report=lambda: {"images": self.images.list()}),
            AgentPart(report=lambda: {"booted": self._templates.explain(), "booting_memory": self.table.booting_bytes}),
            AgentPart(report=self._describe_functions),
            AgentPart(
                keep=self._renewal.keep,
                report=lambda: {"reboot": self._renewal.need, "outdated": self._renewal.outdated},
            ),
            AgentPart(keep=self.allocations.follow_runtimes),
        )

    async def begin(self) -> None:
        """Find the guests that are here, before any part works."""
        self.logs.own.begin()  # also what is said of the guests that it finds
        await self._templates.begin()
        run = await self.allocations.take_up()
        log.info("node %s has %d allocations and %d running guests", self.host.node, len(self.table.states), run)
        self.allocations.begin()
        self._proxies.recall(self._network.egress_before)
        try:
            await self._network.clear_shared()
        except WeftError as problem:
            log.warning("network: %s", problem)

    async def inspect(self) -> None:
        """Find what must be known before the first report; guests don't wait for this."""
        await self._volumes.find()
        await self._snapshots.refresh()
        await self.pools.refresh()
        await self._capabilities.inspect()
        self.tasks.spawn(self._capabilities.keep())

    def follow(self) -> None:
        """Follow the server's objects, except allocations."""
        self.watches.follow("snapshots", "snapshot", {}, self._snapshots.note)
        self.watches.follow_published_ports()
        self.watches.follow_networks()

    async def close(self) -> None:
        """End the agent's own work and close the drivers; guests, networks and disks stay as they are."""
        self.watches.end_all()
        self._server.close()
        self._secrets.close()
        self._keys.close()
        await self.tasks.close()
        try:
            await self.egress_endpoints.close()  # the instances behind them have ended
        except WeftError as problem:
            log.warning("network: %s", problem)
        await self._migrations.close()
        await self._container_images.close()
        self.images.close()
        self.reporter.close()
        self.logs.own.close()
        await self._runtimes.close()
        await self._network_driver.close()

    def _describe_machine(self) -> Mapping[str, Any]:
        report = self._capabilities.report(self._proximity.nearness)
        report.problems = [*report.problems, *self._proxies.troubles]
        nothing = msgspec.structs.asdict(NodeReport())  # other parts fill its empty fields
        return {name: value for name, value in msgspec.structs.asdict(report).items() if value != nothing[name]}

    def _describe_orphans(self) -> Mapping[str, Any]:
        orphans = self.table.orphans()
        unexplained = [(guest, self._runtimes.kind_of(guest.id)) for guest in self.table.unexplained()]
        return {
            "orphans": name_orphans(orphans, unexplained),
            "orphan_allocations": copy_orphans(orphans),
            "epoch": self.allocations.epoch,
        }

    def _describe_functions(self) -> Mapping[str, Any]:
        return {"functions": self.table.functions.report() if self.table.functions is not None else {}}

    def _list_departed(self) -> list[str]:
        found = self._network.departed
        return report_departures(one for one in found if not one.service.proxied or self._proxies.has_departed(one))

    def _let_go(self, answer: ReportAnswer) -> None:
        in_use = self._volume_orders.under_way
        volumes = {volume.uid for order in in_use for volume in order.volumes}
        snapshots = {order.snapshot for order in in_use}
        self._volumes.let_go(uid for uid in answer.remove_volumes if uid not in volumes)
        self._snapshots.let_go(uid for uid in answer.remove_snapshots if uid not in snapshots)
