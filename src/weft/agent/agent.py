"""One node: takes its allocations from the feed, gives each to a worker, keeps the networks, tells the server.

Starts from the durable copies and from what the drivers find, so that guests are cared for whether or not a server
answers. What no list of the server's explains is kept and told as an orphan. Woken by feed, drivers and clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Set
from typing import Any

import msgspec

from weft.agent import facts
from weft.agent.abilities import Abilities
from weft.agent.bygone import recall_bygone
from weft.agent.container_images import ContainerImages
from weft.agent.feed import Gone, Put, Told
from weft.agent.following import Following
from weft.agent.functions.footholds import Footholds
from weft.agent.functions.functions import Functions
from weft.agent.images import ImageCache
from weft.agent.known import Memory, Part, Store, Wanted
from weft.agent.meter import Meter
from weft.agent.moving.credentials import Credentials
from weft.agent.moving.movers import Movers
from weft.agent.moving.wire import TlsWire, Wire
from weft.agent.network import NetworkKeeper
from weft.agent.offline import Copies, Copy, NotKept
from weft.agent.perform import Performer
from weft.agent.pools import LOOK_SECONDS, Pools
from weft.agent.proximity import Proximity
from weft.agent.relations import relate
from weft.agent.report import Question, Reporter
from weft.agent.runtimes import Runtimes
from weft.agent.secrets import Secrets
from weft.agent.server import NodeEvent, ReportAnswer, Server
from weft.agent.worker import Worker
from weft.contracts.clock import Clock
from weft.contracts.host import Host
from weft.contracts.image import OciStore
from weft.contracts.network import NetworkDriver
from weft.contracts.runtime import GuestFacts
from weft.contracts.volume import VolumeDriver
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.node import NodeReport
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
RUNTIME_RETRY_SECONDS = 1.0
HEARTBEAT_SECONDS = 8.0
SHORT_SILENCE_SECONDS = 2.0
LISTEN_SECONDS = 8.0  # for the server's list, before guests that don't run are started from memory
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
        wire: Wire | None = None,
        pools: Mapping[str, VolumeDriver] | None = None,
        container_images: OciStore | None = None,
    ) -> None:
        self.host = host
        self.runtimes = runtimes
        self._server, self._clock = server, clock
        self._pools = Pools(volumes, pools or {}, clock, lambda: self._reporter.wake())
        self._network_driver = network
        self._copies = Copies(host.state_dir)
        self._images = ImageCache(host.state_dir, server, self._used_images)
        self._network = NetworkKeeper(
            network, host, self._copies, clock, self._hosted, self._orphans, self._on_network_healed
        )
        self.footholds = Footholds(
            host,
            self._network,
            lambda project, uid: server.ask_foothold(host.node, project, uid),
            self._on_foothold,
            lambda uid: self._following.hear_network(uid),
        )
        wire = wire or TlsWire(Credentials(host.state_dir), clock)
        self._movers = Movers(
            host,
            runtimes,
            self._network,
            self._pools,
            wire,
            clock,
            self._on_part,
            self._on_move,
            self._on_store,
        )
        self._container_images = ContainerImages(container_images, self._images, self._used_container_images, clock)
        secrets = Secrets(lambda allocation: server.read_secrets(host.node, allocation))
        self._performer = Performer(
            host,
            runtimes,
            self._pools,
            self._network,
            self._images,
            self._container_images,
            self._movers,
            secrets,
            clock,
        )
        self._reporter = Reporter(
            host.node, server, clock, self._make_node_report, self._longest_silence, self._ask, self._on_answer
        )
        self._proximity = Proximity(host.node_uid, host.underlay_address, host.echo_port, clock, self._reporter.wake)
        self._meter = Meter(host, runtimes, self._pools, clock, self._guests, self._unexplained, self._reporter.wake)
        self._workers: dict[str, Worker] = {}  # by allocation uid
        self._care: dict[str, asyncio.Task[None]] = {}
        self._superseded: set[str] = set()  # allocations with a later incarnation elsewhere, by the server's word
        self._deleted: set[str] = set()  # allocations the server has no more, whose release is under way here
        self._recovered: dict[str, GuestFacts] = {}  # guests found at the start, by guest id
        self._following = Following(server, self._network, self._on_network)
        self._removing: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abilities = Abilities(host, runtimes, network, clock)
        self._epoch = ""  # the server's history that the last list was of
        self._functions: Functions | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Take up what is here already; then follow the server. Returns once all guests are known."""
        self._epoch = await asyncio.to_thread(self._copies.load_epoch)
        await asyncio.to_thread(self._copies.drop_departures)
        for copy in await asyncio.to_thread(self._copies.load):
            self._add_worker(copy).unheard = True
        found = await self.runtimes.recover()
        self._recovered = {guest.id: guest for guest in found if guest.state != "absent"}
        self._relate()
        adopted = sum(guest.state in ("running", "starting", "paused") for guest in found)
        log.info("node %s: %d allocations known, %d guests run", self.host.node, len(self._workers), adopted)
        for worker in self._workers.values():
            self._care[worker.wanted.uid] = self._spawn(worker.care())
        await self._clear_footholds()
        self._spawn(self._network.keep())
        self._spawn(self._follow_runtime())
        self._spawn(self._proximity.keep())
        self._spawn(self._meter.keep())
        self._spawn(self._pools.keep())
        self._spawn(self._keep_volumes())
        self._spawn(self._introduce())
        self._spawn(self._stop_listening())
        self._following.follow("allocations", "allocation", {"node": self.host.node_uid}, self._on_allocation)
        self._following.follow_publications()
        self._follow_networks()

    async def _stop_listening(self) -> None:
        """A guest that ended while no agent was here is started again on the server's word; without a server, alone. One
        that answers will send its list too, however long that takes."""
        waits_until = self._clock.elapsed() + LISTEN_SECONDS
        while any(worker.unheard for worker in self._workers.values()):
            left = (
                max(waits_until, self._reporter.answered_at + HEARTBEAT_SECONDS + LISTEN_SECONDS)
                - self._clock.elapsed()
            )
            if left <= 0:
                self._hear()
            else:
                await self._clock.sleep(left)

    async def _clear_footholds(self) -> None:
        try:
            await self._network.clear_shared()
        except WeftError as problem:
            log.warning("network: %s", problem)

    def _hear(self) -> None:
        for worker in self._workers.values():
            worker.hear()

    async def _introduce(self) -> None:
        """Find out what this node can do, then begin to report; its guests don't wait for that."""
        await self._performer.find_volumes()
        await self._pools.look()
        await self._abilities.find_out()
        self._reporter.wake()
        await self._reporter.tell()
        await self._abilities.keep(self._reporter.wake)

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
            await self.footholds.close()  # whoever stood behind them has ended
        except WeftError as problem:
            log.warning("network: %s", problem)
        await self._movers.close()
        await self._container_images.close()
        self._images.close()
        self._reporter.close()
        await self.runtimes.close()
        await self._network_driver.close()

    def find_guest(self, allocation: str) -> Wanted | None:
        """The allocation of that name or uid if this node has it."""
        for worker in self._workers.values():
            if allocation in (worker.wanted.name, worker.wanted.uid):
                return worker.wanted
        return None

    def taken(self) -> tuple[float, int]:
        """CPU in cores and bytes of memory that allocations have here, whether or not their guests run now."""
        resources = [worker.wanted.spec.resources for worker in self._workers.values() if not worker.released]
        return sum(one.cpu for one in resources), sum(one.memory for one in resources)

    def serve_functions(self, functions: Functions) -> None:
        """Tell them whenever allocations may take more room, and the server what they run."""
        self._functions = functions

    def _add_worker(self, copy: Copy) -> Worker:
        worker = Worker(
            copy, self._performer, self._copies, self._clock, self._reporter.put, self._on_event, self._relate
        )
        self._workers[worker.wanted.uid] = worker
        return worker

    def _on_allocation(self, told: Told) -> None:
        if isinstance(told, Put):
            self._put_allocation(told.envelope)
        elif isinstance(told, Gone):
            self._lose_allocation(told.last)
        else:
            for worker in [w for w in self._workers.values() if w.wanted.name not in told.names]:
                self._miss_allocation(worker)
            if told.epoch != self._epoch:
                self._epoch = told.epoch
                self._spawn(self._keep_epoch(told.epoch))
            self._hear()
            self._reporter.repeat()
        self._relate()
        self._follow_networks()
        self._network.wake()

    async def _keep_epoch(self, epoch: str) -> None:
        """Remember durably that this history was heard, once all that it made orphans is remembered as such: an agent
        that starts again says so to the server, which places nothing until it has."""
        try:
            for worker in list(self._workers.values()):
                await worker.keep()
            if epoch == self._epoch:
                await asyncio.to_thread(self._copies.save_epoch, epoch)
        except NotKept as problem:
            log.warning("%s", problem.message)  # it is heard of anew after a start

    def _put_allocation(self, envelope: Envelope) -> None:
        if decode_part(envelope.spec, AllocationSpec).role == "reserved":
            return  # nothing is to be here yet: it only takes room in the server's books
        self._superseded.discard(envelope.uid)
        worker = self._workers.get(envelope.uid)
        if worker is not None and not (worker.released and envelope.deleting_since is None):
            worker.update(envelope)
            self._reporter.compare(envelope.name, worker.wanted.report)
            return
        if worker is not None:
            self._drop(worker)  # released here, but a restored server wishes it again
        report = decode_part(envelope.report, AllocationReport)
        memory = Memory(boots=report.boots, restarts=report.restarts)
        memory = recall_bygone(memory, self._copies.load_departure(short_id(envelope.uid)))
        worker = self._add_worker(Copy(envelope, memory))
        self._care[envelope.uid] = self._spawn(worker.care())

    def _lose_allocation(self, last: Envelope) -> None:
        """The server deleted it: that is a wish only if it was being deleted."""
        worker = self._workers.get(last.uid)
        if worker is None:
            return
        if worker.released:
            self._drop(worker)
        elif last.deleting_since is not None:
            self._deleted.add(last.uid)
            worker.update(last)
        else:
            self._miss_allocation(worker)

    def _miss_allocation(self, worker: Worker) -> None:
        """It is in no list: that is no wish. What was made stays; a deletion under way goes on."""
        if worker.released or (not worker.memory.made and worker.wanted.id not in self._recovered):
            self._drop(worker)
        elif not worker.wanted.deleting and not worker.memory.orphan:
            worker.orphan()
            self._on_event(
                worker.wanted, "Warning", "Orphaned", f"the server no longer knows {worker.wanted.what}; it is kept"
            )

    def _drop(self, worker: Worker) -> None:
        self._workers.pop(worker.wanted.uid, None)
        if worker.released:
            self._recovered.pop(worker.wanted.id, None)  # else it would count as a guest that nothing explains
        self._deleted.discard(worker.wanted.uid)
        self._reporter.drop(worker.wanted.name)
        task = self._care.pop(worker.wanted.uid, None)
        if task is not None:
            task.cancel()
        if not worker.memory.made:
            self._copies.remove(worker.wanted.id)  # of a deletion that was begun again after its end

    def _relate(self) -> None:
        """See which incarnations of one workload meet on this node, and let go of what is released and deleted."""
        for worker in list(self._workers.values()):
            if worker.released and worker.wanted.uid in self._deleted:
                self._drop(worker)
        relate(self._workers.values(), self._superseded)
        if self._functions is not None:
            self._functions.on_room()
        if any(worker.memory.orphan for worker in self._workers.values()):
            self._reporter.wake()  # where their guests are may be known by now

    def _hosted(self) -> list[Wanted]:
        """What has NICs here: guests, and the node itself where functions reach a network."""
        guests = [worker.wanted for worker in self._workers.values() if worker.is_hosted]
        return guests + self.footholds.hosted()

    def _orphans(self) -> list[Wanted]:
        return [worker.wanted for worker in self._workers.values() if worker.memory.orphan]

    def _copy_orphans(self) -> list[str]:
        orphans = [worker for worker in self._workers.values() if worker.memory.orphan]
        return facts.copy_orphans([(worker.wanted, worker.standing, worker.last_move) for worker in orphans])

    def _guests(self) -> list[tuple[Wanted, GuestFacts | None]]:
        return [(worker.wanted, worker.guest) for worker in self._workers.values()]

    def _unexplained(self) -> list[GuestFacts]:
        explained = {worker.wanted.id for worker in self._workers.values()}
        return [guest for id, guest in self._recovered.items() if id not in explained]

    def _follow_networks(self) -> None:
        needed = {nic.network_uid for worker in self._workers.values() for nic in worker.wanted.spec.nics}
        self._following.follow_networks(needed | self._network.handover.networks | set(self.footholds.networks()))

    def _on_network(self, uid: str, addresses: Set[str]) -> None:
        self._spawn(self.footholds.confirm(uid, addresses))

    def _on_foothold(self) -> None:
        self._follow_networks()
        self._reporter.wake()

    async def _follow_runtime(self) -> None:
        while True:
            try:
                await self.runtimes.changed()
            except WeftError as problem:
                log.warning("runtime: %s", problem.message)
                await self._clock.sleep(RUNTIME_RETRY_SECONDS)
            for worker in self._workers.values():
                worker.look()
            for guest in self._unexplained():
                driver = self.runtimes.who_found(guest.id)
                now = await driver.inspect(guest.id) if driver is not None else None
                if now is None or now.state == "absent":
                    self._recovered.pop(guest.id, None)
                    self._reporter.wake()
            await self._clock.sleep(BREATH_SECONDS)

    def _used_images(self) -> set[str]:
        """Those that a disk here stands on, or soon will; all, while there is a guest nobody knows the wish of."""
        if self._unexplained():
            return set(self._images.list())
        specs = [worker.wanted.spec for worker in self._workers.values()]
        return {image.sha256 for spec in specs for image in (spec.image, spec.iso) if image is not None}

    def _used_container_images(self) -> set[str] | None:
        if self._unexplained():
            return None
        functions = self._functions.used_images() if self._functions is not None else set()
        return ({worker.memory.image for worker in self._workers.values()} | functions) - {""}

    def _make_node_report(self) -> NodeReport:
        return facts.make_report(
            self.host,
            self._abilities.machine,
            self._abilities.hardware,
            self._proximity.nearness,
            self._abilities.runtimes,
            self._abilities.network,
            self._images.list(),
            sorted(self._performer.volume_uids),
            self._orphans(),
            self._copy_orphans(),
            [(guest, self.runtimes.kind_of(guest.id)) for guest in self._unexplained()],
            self._epoch,
            self._pools.facts,
            self._functions.report() if self._functions is not None else {},
            self.footholds.networks(),
        )

    def _on_event(self, wanted: Wanted, type_: str, reason: str, message: str) -> None:
        log.info("%s: %s: %s", wanted.what, reason, message)
        self._reporter.put_event(NodeEvent(type_, reason, message, msgspec.to_builtins(wanted.spec.workload)))

    def _on_part(self, uid: str, part: Part) -> Awaitable[None]:
        keeping = asyncio.ensure_future(self._workers[uid].keep_part(part))
        keeping.add_done_callback(_log_failure)
        return keeping

    def _on_store(self, uid: str, store: Store) -> Awaitable[None]:
        return self._workers[uid].keep_store(store)

    def _on_move(self, uid: str) -> None:
        if (worker := self._workers.get(uid)) is not None:
            worker.look()

    def _on_network_healed(self, mended: list[str]) -> None:
        node = {"kind": "node", "name": self.host.node, "uid": self.host.node_uid, "project": None}
        for phrase in mended:
            log.warning("network healed: %s", phrase)
            self._reporter.put_event(NodeEvent("Warning", "NetworkHealed", phrase, node))

    def _longest_silence(self) -> float:
        """A server says only in its answers what to remove: ask often while there is any that it might mean."""
        is_asking = self._performer.volume_uids - self._attached() or self._network.ask().idle_networks
        return SHORT_SILENCE_SECONDS if is_asking else HEARTBEAT_SECONDS

    async def _keep_volumes(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if await self._performer.review_volumes(self._attached):
                self._reporter.wake()

    def _attached(self) -> set[str]:
        made = (worker.wanted for worker in self._workers.values() if worker.memory.made)
        return {volume.uid for wanted in made for volume in wanted.spec.volumes}

    def _ask(self) -> Question:
        return msgspec.structs.replace(
            self._network.ask(),
            heard=self._following.heard("allocations"),
            peers_version=self._proximity.version,
            digest=self._meter.digest(),
        )

    def _on_answer(self, answer: ReportAnswer) -> None:
        if answer.peers is not None:
            self._proximity.put_peers(answer.peers)
        if answer.ranges is not None:
            self._network.put_ranges(answer.ranges_version, answer.ranges)
        self._network.drop_networks(answer.gone_networks)
        self._supersede(set(answer.superseded) - self._superseded, set(answer.stale_volumes))
        for uid in answer.remove_volumes:
            if uid not in self._attached() and uid not in self._removing:
                self._removing.add(uid)
                self._spawn(self._remove_volume(uid))

    def _supersede(self, uids: set[str], stale_volumes: set[str]) -> None:
        """A later incarnation was placed elsewhere: these are ended, and their root disks removed."""
        for worker in self._workers.values():
            if worker.wanted.uid in uids and worker.memory.orphan:
                self._superseded.add(worker.wanted.uid)
                worker.note_stale(stale_volumes)
                self._deleted.add(worker.wanted.uid)
                self._on_event(
                    worker.wanted,
                    "Warning",
                    "Superseded",
                    "it was placed elsewhere meanwhile: removed here",
                )
        if uids:
            self._relate()

    async def _remove_volume(self, uid: str) -> None:
        try:
            await self._performer.remove_volume(uid)
            self._reporter.put_removed_volume(uid)
        except (WeftError, OSError) as problem:
            log.warning("volume %s can't be removed: %s", uid, problem)
        finally:
            self._removing.discard(uid)

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
