"""Does what the server asks this node for with volumes by themselves: takes snapshots of them, makes volumes from snapshots, and
takes volumes back to snapshots.

Orders come with the answers to the node's reports, and those for snapshots by the watch of them. They stand until their report has
been read, and a piece that is cut off begins again; every piece may be repeated. What became of one is in
``<state>/volume-work.json`` before it is reported, and stays there a while: a server that is late with an answer may ask for it
again, when the volume is long in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec.structs import replace

from weft.agent.problem import describe_problem
from weft.agent.snapshot.inventory import KeptSnapshots
from weft.agent.snapshot.turns import DiskTurns
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.snapshots import name_layer
from weft.agent.state.table import AllocationTable
from weft.agent.state.workload_kinds import WORKLOAD_KINDS
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.agent.watches import Change, Listed, Put
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CanTake, HasLayers, KeptDisk, KeptSnapshot, TakenFacts
from weft.contracts.driver.volume import HasPool, VolumeDriver
from weft.contracts.durable_file import write_durably
from weft.kinds.parts.snapshot.volume_work import OrderedVolume, VolumeOrder, VolumeReport, find_volume_report
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.envelope import decode_part
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, WeftError
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
AT_ONCE = 2
RETRY_SECONDS = 2.0  # of what another piece of work keeps from being done
FAILED_SECONDS = 30.0  # of what failed and may pass, like a full disk
REMEMBERED = 256  # reports of orders that are over
_ALIVE = ("starting", "running", "paused")
# What doesn't pass: another try would end the same.
_FINAL = ("snapshotGone", "unsupported", "noPool")


class Busy(msgspec.Struct, frozen=True):
    """Uids of what is being worked on, which must not be removed meanwhile."""

    volumes: frozenset[str]
    snapshots: frozenset[str]


class VolumeWork:
    """``changed`` is called when there is something to report."""

    def __init__(
        self,
        state_dir: str,
        node_uid: str,
        pools: Pools,
        volumes: Volumes,
        kept: KeptSnapshots,
        table: AllocationTable,
        turns: DiskTurns,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._file = Path(state_dir) / "volume-work.json"
        self._pools, self._volumes, self._kept = pools, volumes, kept
        self._table, self._turns, self._clock, self._changed = table, turns, clock, changed
        self._node_uid = node_uid
        self._answered: list[VolumeOrder] = []
        self._watched: dict[str, VolumeOrder] = {}  # by the name of the object
        self._orders: list[VolumeOrder] = []  # both
        self._over = self._load()
        self._open: list[VolumeReport] = []  # of orders that are not over
        self._tasks: dict[asyncio.Task[None], VolumeOrder] = {}
        self._due: dict[tuple[str, str, int], float] = {}  # elapsed seconds at which it is tried again
        self._woken = asyncio.Event()

    @property
    def has_orders(self) -> bool:
        return bool(self._orders)

    def report(self) -> list[VolumeReport]:
        """What became of the present orders."""
        found = (find_volume_report([*self._over, *self._open], order) for order in self._orders)
        return [report for report in found if report is not None]

    def find_busy(self) -> Busy:
        orders = list(self._tasks.values())
        volumes = frozenset(volume.uid for order in orders for volume in order.volumes)
        return Busy(volumes, frozenset(order.snapshot for order in orders))

    def put_orders(self, orders: Sequence[VolumeOrder]) -> None:
        """All that this node shall do. What is being done is brought to its end, whether or not it is still wanted."""
        self._answered = list(orders)
        self._update()

    def note(self, change: Change) -> None:
        """Hear of the server's snapshots that lie on this node, or are about to."""
        if isinstance(change, Listed):
            self._watched = {name: order for name, order in self._watched.items() if name in change.names}
        else:
            envelope = change.envelope if isinstance(change, Put) else change.last
            order = decode_part(envelope.status, SnapshotStatus).volume_order
            self._watched.pop(envelope.name, None)
            if isinstance(change, Put) and order is not None and order.node_uid == self._node_uid:
                self._watched[envelope.name] = order
        self._update()

    def _update(self) -> None:
        orders = list({_name(order): order for order in (*self._answered, *self._watched.values())}.values())
        if orders != self._orders:
            self._orders = orders
            wanted = {_name(order) for order in orders}
            self._open = [one for one in self._open if (one.uid, one.act, one.generation) in wanted]
            self._due = {name: at for name, at in self._due.items() if name in wanted}
            self._woken.set()

    async def keep(self) -> None:
        """Do what is ordered, for ever."""
        try:
            while True:
                self._woken.clear()
                self._begin()
                pause = min((at - self._clock.elapsed() for at in self._due.values()), default=FAILED_SECONDS)
                waits = asyncio.ensure_future(self._woken.wait())
                sleeps = asyncio.ensure_future(self._clock.sleep(max(0.05, pause)))
                try:
                    await asyncio.wait([waits, sleeps], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waits.cancel()
                    sleeps.cancel()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        running = {_name(order) for order in self._tasks.values()}
        for order in self._orders:
            name = _name(order)
            over, due = find_volume_report(self._over, order), self._due.get(name, 0.0)
            if over is not None or name in running or due > self._clock.elapsed() or len(self._tasks) >= AT_ONCE:
                continue
            self._due.pop(name, None)
            task = asyncio.ensure_future(self._do(order))
            self._tasks[task] = order
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        order = self._tasks.pop(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("%s of volumes for %s", order.act, order.uid, exc_info=problem)
            self._due[_name(order)] = self._clock.elapsed() + FAILED_SECONDS
        self._woken.set()

    async def _do(self, order: VolumeOrder) -> None:
        report = VolumeReport(uid=order.uid, act=order.act, generation=order.generation)
        former = find_volume_report(self._open, order)
        if former is None or former.phase != "working":
            self._note(replace(report, message=former.message if former is not None else ""))
        try:
            report = await self._act(order, report)
        except IllegalTransition as problem:  # something else is being done to it
            if problem.token == "inUse":
                return self._fail(order, report, problem, again=False)
            self._due[_name(order)] = self._clock.elapsed() + RETRY_SECONDS
            return self._note(replace(report, message=problem.message))
        except (WeftError, OSError) as problem:
            final = order.act == "take" or describe_problem(problem)[0] in _FINAL
            return self._fail(order, report, problem, again=not final)
        self._note(replace(report, phase="done"))

    def _fail(self, order: VolumeOrder, report: VolumeReport, problem: Exception, *, again: bool) -> None:
        reason, message = describe_problem(problem)
        names = ", ".join(volume.name for volume in order.volumes)
        for volume in order.volumes:
            message = message.replace(volume.uid, volume.name)
        log.warning("%s of volume %s for snapshot %s: %s", order.act, names, order.snapshot_name, message)
        if again:
            self._due[_name(order)] = self._clock.elapsed() + FAILED_SECONDS
        self._note(replace(report, phase="failed", again=again, reason=reason, message=message))

    def _note(self, report: VolumeReport) -> None:
        name = (report.uid, report.act, report.generation)
        self._open = [one for one in self._open if (one.uid, one.act, one.generation) != name]
        if report.is_over:
            self._over = [*self._over, report][-REMEMBERED:]
            self._save()
        else:
            self._open.append(report)
        self._changed()

    async def _act(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        """Raises WeftError, OSError; IllegalTransition for what is tried again soon."""
        ids = [volume.uid for volume in order.volumes]
        holders = [one for one in self._table if {volume.uid for volume in one.local.spec.volumes} & set(ids)]
        if order.act != "take" and any(_holds(one) for one in holders):
            raise IllegalTransition("its volume is attached to a workload on this node: it waits until that is gone")
        machine = next((one.local for one in holders if _has_machine(one.local)), None)
        if order.act == "take" and machine is not None:
            of = machine.spec.workload
            hint = f"take a snapshot of that: weft {of.kind} snapshot {of.name}"
            raise IllegalTransition(f"{machine.what} has it; {hint}", reason="inUse", hint=hint)
        runs = any(_runs(one) for one in holders)
        async with AsyncExitStack() as stack:
            apart = [] if runs and order.act == "take" else ids  # the driver sees to those that a container has mounted
            if not await stack.enter_async_context(self._turns.exclusive(apart)):
                raise IllegalTransition("its volume is being worked on: it waits for that")
            if order.act == "take":
                return await self._take(order, report)
            return await self._restore(order, report)

    # --- take -----------------------------------------------------------------------------------------------------------

    async def _take(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        """All of it or nothing is kept."""
        taken: list[TakenFacts] = []
        taken_at = self._clock.now()
        try:
            for driver, volumes in (await self._find_pools(order.volumes)).values():
                if not isinstance(driver, CanTake):
                    raise DriverFailed(f"storage pool {driver.name} can't take snapshots", reason="unsupported")
                disks = {volume.uid: KeptDisk((), 0, volume.name) for volume in volumes}
                snapshot = KeptSnapshot(short_id(order.snapshot), order.snapshot, disks, taken_at=taken_at)
                layers = {volume.uid: name_layer(order.snapshot, volume.uid) for volume in volumes}
                taken.append(await driver.taking.take(snapshot, layers))
        except (WeftError, OSError):
            await self._drop(order)
            raise
        await self._kept.refresh()  # the server hears that it is kept no later than that it is ready
        kept = [one for driver in self._layered() for one in await driver.layers.list_kept()]
        kept = [one for one in kept if one.uid == order.snapshot]
        first = order.volumes[0]
        frozen = any(facts.consistency == "filesystem" for facts in taken)
        return replace(
            report,
            consistency="filesystem" if frozen else "stopped",
            disks={disk: facts.size_bytes for one in kept for disk, facts in one.disks.items()},
            size=sum(one.used_bytes for one in kept),
            pause_ms=max((facts.pause_ms for facts in taken), default=0.0),
            taken_at=min((one.taken_at for one in kept if one.taken_at), default=taken_at),
            pool=first.pool,
            pool_id=await self._find_storage(first),
        )

    async def _drop(self, order: VolumeOrder) -> None:
        for driver in self._layered():
            await driver.layers.drop(short_id(order.snapshot))
        self._kept.wake()

    # --- make, replace --------------------------------------------------------------------------------------------------

    async def _restore(self, order: VolumeOrder, report: VolumeReport) -> VolumeReport:
        volume = order.volumes[0]
        driver = await self._pools.find(volume.pool, volume.pool_id)
        if not isinstance(driver, HasLayers):
            raise DriverFailed(f"storage pool {volume.pool} can't keep snapshots", reason="unsupported")
        snapshot = short_id(order.snapshot)
        kept = [one for one in await driver.layers.list_kept() if one.id == snapshot]
        if not kept or order.disk not in kept[0].disks:
            raise NotFound(
                f"snapshot/{order.snapshot_name} of the volume is not in storage pool {volume.pool} of this node",
                reason="snapshotGone",
                hint="restore another snapshot",
            )
        if order.act == "make":
            facts = await driver.layers.clone(volume.uid, snapshot, order.disk, size_bytes=order.size)
        else:
            layer = name_layer(f"{volume.uid}/{order.generation}", volume.uid)
            facts = await driver.layers.replace(volume.uid, snapshot, order.disk, layer)
            if facts.size_bytes < order.size:  # it has grown since
                facts = await driver.grow(volume.uid, order.size)
        self._volumes.uids.add(volume.uid)
        self._kept.wake()
        storage = await self._find_storage(volume)
        return replace(report, disks={volume.uid: facts.size_bytes}, pool=volume.pool, pool_id=storage)

    # --------------------------------------------------------------------------------------------------------------------

    async def _find_pools(
        self, volumes: Sequence[OrderedVolume]
    ) -> dict[int, tuple[VolumeDriver, list[OrderedVolume]]]:
        """Each of their pools once, and the volumes in it. Raises DriverFailed."""
        found: dict[int, tuple[VolumeDriver, list[OrderedVolume]]] = {}
        for volume in volumes:
            driver = await self._pools.find(volume.pool, volume.pool_id)
            found.setdefault(id(driver), (driver, []))[1].append(volume)
        return found

    async def _find_storage(self, volume: OrderedVolume) -> str:
        driver = await self._pools.find(volume.pool, volume.pool_id)
        return (await asyncio.to_thread(driver.pool)).id if isinstance(driver, HasPool) else ""

    def _layered(self) -> list[HasLayers]:
        return [driver for driver in self._pools.drivers() if isinstance(driver, HasLayers)]

    def _load(self) -> list[VolumeReport]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[VolumeReport])
        except (OSError, msgspec.DecodeError):
            return []

    def _save(self) -> None:
        try:
            write_durably(self._file, msgspec.json.encode(self._over))
        except OSError as problem:
            log.warning("can't write %s: %s", self._file, problem)


def _runs(state: AllocationState) -> bool:
    return state.guest is not None and state.guest.state in _ALIVE


def _holds(state: AllocationState) -> bool:
    """Whether the workload has its volumes, or may start again: what runs once and has ended rests until it is deleted."""
    return state.checkpoint.made and (_runs(state) or not state.local.spec.once)


def _has_machine(local: LocalAllocation) -> bool:
    """Whether snapshots of its volumes are taken with those of its machine."""
    return WORKLOAD_KINDS[local.spec.workload.kind].snapshots == "machine"


def _name(order: VolumeOrder) -> tuple[str, str, int]:
    return order.uid, order.act, order.generation
