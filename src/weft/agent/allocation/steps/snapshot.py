"""The step that takes a snapshot of a VM: all its disks at one instant, and its memory if that is asked for.

The checkpoint says which one is being taken before anything of it is begun. How far it is, the pools' unfinished layers and the
runtime say: a step that is repeated asks them first. A guest that ended meanwhile has written to the new files or it hasn't; its
disks are whole either way, so that their layers are finished.
"""

from __future__ import annotations

import contextlib
import logging

from msgspec.structs import replace

from weft.agent.allocation.snapshots import NOT_HELD
from weft.agent.allocation.steps.names import StepName
from weft.agent.allocation.steps.record import Moment, StepParts, StepRecord, Work
from weft.agent.problem import describe_problem
from weft.agent.snapshot.disks import absorb
from weft.agent.state.allocation import Checkpoint, TakenDisk, Taking
from weft.agent.state.allocation_state import keep_snapshot
from weft.agent.state.snapshots import begin_taking, find_turn, find_wanted, name_layer
from weft.agent.workload.kind import Show
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.layers import MOST_LAYERS, HasLayers, KeptDisk, KeptSnapshot, Layers
from weft.contracts.driver.snapshot import CanSnapshot, SnapshotFacts, SnapshotPlan, Snapshots
from weft.contracts.driver.volume import VolumeDriver
from weft.kinds.allocation import ROOT
from weft.kinds.fields.allocated_snapshot import SnapshotReport
from weft.objects.errors import DriverFailed, InvalidInput, WeftError
from weft.objects.identity import short_id

HOLD_SECONDS = 8.0  # how long a guest stands still for others of its group, at most
ASK_SECONDS = 0.5  # how soon a runtime that saves memory is asked again
ALIVE = ("starting", "running", "paused")
LONG_LAYERS, ABSORBED_AT_ONCE = MOST_LAYERS // 2, 2  # from so many layers on, so many go before another comes

log = logging.getLogger("weft.agent")


def _before(checkpoint: Checkpoint, moment: Moment) -> Checkpoint:
    wanted = find_wanted(moment.spec, checkpoint)
    if checkpoint.taking is not None or wanted is None:
        return checkpoint
    return replace(checkpoint, taking=begin_taking(moment.spec, wanted, live=moment.alive))


async def _take(parts: StepParts, work: Work, show: Show) -> None:
    if (taking := work.state.checkpoint.taking) is not None:
        await SnapshotTaker(parts, work, taking).advance()


SNAPSHOT_STEPS = (StepRecord(step=StepName.SNAPSHOT, perform=_take, before=_before, durable=True),)


class SnapshotTaker:
    """Goes on with one snapshot as far as it gets now."""

    def __init__(self, parts: StepParts, work: Work, taking: Taking) -> None:
        self._parts, self._state, self._local, self._taking = parts, work.state, work.local, taking
        self._snapshot = taking.snapshot
        self._runtime: Snapshots | None = None  # of a guest that ran as it began
        self._drivers: dict[str, VolumeDriver] = {}  # of the disks that exist

    async def advance(self) -> None:
        """Raises WeftError, OSError where it can't be known what to do, or not be saved: then it is tried again."""
        try:
            await self._find_parts()
            if not self._taking.finished and await self._find_kept():
                return await self._end(await self._describe())  # its report was lost
            if self._snapshot.memory and not self._taking.live and not self._taking.finished:
                await self._undo()  # what an earlier agent began
                raise _lost_memory(self._local.what)
        except InvalidInput as problem:  # nothing was begun
            return await self._fail(problem)
        facts = await self._ask()
        if not self._taking.finished:
            switched = await self._switch(facts)
            if switched is None:
                return None
            facts = switched
            await self._finish(facts)
        if facts.phase in ("switching", "saving"):
            if await self._is_alive():
                self._state.snapshot_at = self._parts.node.clock.elapsed() + ASK_SECONDS
                return None
            assert self._runtime is not None
            facts = await self._runtime.cancel(self._local.id, self._snapshot.uid)
        if facts.phase == "failed" or (self._taking.live and self._snapshot.memory and not facts.memory_bytes):
            why = facts.message or "the VM ended before its memory was kept"
            return await self._fail(DriverFailed(why, reason="notKept", hint="take it again while the VM runs"))
        try:
            await self._keep(facts)
        except WeftError as problem:
            return await self._fail(problem)
        return await self._end(await self._describe(facts.memory_bytes))

    async def _find_parts(self) -> None:
        """The drivers of its disks. A volume that isn't there yet holds nothing. Raises InvalidInput."""
        local, pools = self._local, self._parts.node.pools
        for volume in local.spec.volumes:
            if volume.encrypted and volume.uid in self._taking.disks:
                raise InvalidInput(
                    f"{local.what}: its volume {volume.name} is encrypted, and snapshots of encrypted volumes can't be taken",
                    reason="unsupported",
                    hint="detach the volume first",
                )
        for disk, place in self._taking.disks.items():
            driver = await pools.find(place.pool, place.pool_id)
            if await driver.inspect(self._id(disk)) is not None:
                self._drivers[disk] = driver
            elif disk == ROOT:
                raise InvalidInput(f"{local.what} has no disk yet", reason="noDisk", hint="start it once")
            if not isinstance(driver, HasLayers):
                raise InvalidInput(
                    f"{local.what}: storage pool {place.pool} can't keep snapshots",
                    reason="unsupported",
                    hint="relocate the disk to another pool",
                )
            if disk == ROOT and self._snapshot.memory and not driver.layers.memory_path(short_id(self._snapshot.uid)):
                raise InvalidInput(
                    f"{local.what}: its root disk is in storage pool {place.pool}, which can't keep a VM's memory",
                    reason="unsupported",
                    hint="take the snapshot without memory, or relocate the root disk to a pool that is a folder",
                )
        runtime = self._parts.runtimes.of(local)
        if not self._taking.live:
            return
        if not isinstance(runtime, CanSnapshot):
            raise InvalidInput(
                f"{local.what}: runtime {runtime.name} can't take snapshots of a running VM",
                reason="unsupported",
                hint="stop it first",
            )
        self._runtime = runtime.snapshots

    async def _ask(self) -> SnapshotFacts:
        """Ask the runtime about the snapshot. Without the runtime it is done as soon as it is begun."""
        if self._runtime is None:
            return SnapshotFacts(self._snapshot.uid, "done", switched=True, consistency="stopped")
        return await self._runtime.progress(self._local.id, self._snapshot.uid)

    async def _switch(self, facts: SnapshotFacts) -> SnapshotFacts | None:
        """The facts once the layers may be finished; None if it has failed, or isn't so far."""
        if self._runtime is not None and facts.switched:
            return await self._release(facts) if facts.phase == "holding" else facts
        turn = find_turn(self._local, self._snapshot.uid) if self._snapshot.turn else ""
        if turn in ("go", "drop") and (self._runtime is None or await self._is_alive()):
            return await self._count_at_rest(facts, turn)
        problem: Exception = DriverFailed(facts.message or "the VM's disks couldn't be switched", reason="notSwitched")
        if facts.phase in ("none", "done"):
            await self._shorten()
            try:
                overlays = {disk: await self._begin(disk) for disk in self._drivers}
            except (WeftError, OSError) as raised:
                await self._undo()
                await self._fail(raised)
                return None
            if self._runtime is None and self._snapshot.turn:
                return await self._hold_at_rest()
            if self._runtime is None:
                return facts
            try:
                if await self._is_alive():
                    facts = await self._runtime.take(self._local.id, self._plan(overlays))
                    return await self._release(facts) if facts.phase == "holding" else facts
            except (WeftError, OSError) as raised:
                problem, facts = raised, await self._ask()
                if facts.switched:
                    return facts
        if not await self._is_alive():  # it may have been switched: nothing is lost if it wasn't
            for disk in self._drivers:
                await self._begin(disk)
            fails = self._snapshot.memory or self._snapshot.turn
            return SnapshotFacts(self._snapshot.uid, "failed" if fails else "done", switched=True)
        if facts.phase in ("switching", "saving"):
            self._state.snapshot_at = self._parts.node.clock.elapsed() + ASK_SECONDS
            return None
        await self._undo()
        await self._fail(problem)
        return None

    async def _release(self, facts: SnapshotFacts) -> SnapshotFacts | None:
        """The guest stands still: None while it still waits for the others of its group."""
        assert self._runtime is not None
        turn = find_turn(self._local, self._snapshot.uid)
        if turn == "hold":
            self._state.held_until = self._state.held_until or self._parts.node.clock.elapsed() + HOLD_SECONDS
            if self._parts.node.clock.elapsed() < self._state.held_until:
                return None
        self._state.held_until = 0.0
        end = self._runtime.release if turn == "go" else self._runtime.cancel
        return await end(self._local.id, self._snapshot.uid)

    async def _hold_at_rest(self) -> SnapshotFacts | None:
        """A guest that doesn't run holds by that: nothing starts it meanwhile."""
        now = self._parts.node.clock.elapsed()
        self._state.held_until = self._state.held_until or now + HOLD_SECONDS
        return None if now < self._state.held_until else await self._count_at_rest(None, "drop")

    async def _count_at_rest(self, facts: SnapshotFacts | None, turn: str) -> SnapshotFacts | None:
        """Nothing of it is switched: that of a guest at rest counts if it was held until now."""
        held, self._state.held_until = self._state.held_until, 0.0
        if self._runtime is None and held and turn == "go":
            return facts
        await self._undo()
        await self._fail(DriverFailed("it did not stand still as long as the others of its group", reason=NOT_HELD))
        return None

    async def _shorten(self) -> None:
        """Have layers go that nothing needs, where a chain is long: in the background they may come too late, since that gives way
        to each snapshot. More go than this one adds, so no number of snapshots makes a chain too long but those that are kept."""
        most = MOST_LAYERS if self._snapshot.turn else LONG_LAYERS  # others of a group wait for no more than they must
        for disk in self._drivers:
            layers, id_ = self._layers(disk), self._id(disk)
            for _ in range(ABSORBED_AT_ONCE):
                unneeded = await layers.list_unneeded(id_)
                if not unneeded or len(await layers.list_layers(id_)) < most:
                    break
                try:
                    await absorb(
                        *(self._state, disk, self._parts.runtimes, self._parts.node.images, layers, unneeded[-1])
                    )
                except (WeftError, OSError) as problem:  # the pool says whether the chain is too long
                    log.warning("%s: a layer can't be absorbed before a snapshot: %s", self._local.what, problem)
                    break

    async def _begin(self, disk: str) -> str:
        return await self._layers(disk).begin_layer(self._id(disk), self._layer(disk))

    async def _undo(self) -> None:
        for disk in self._drivers:
            await self._layers(disk).undo_layer(self._id(disk), self._layer(disk))

    async def _finish(self, facts: SnapshotFacts) -> None:
        for disk in self._drivers:
            await self._layers(disk).finish_layer(self._id(disk), self._layer(disk))
        self._taking = replace(
            self._taking,
            finished=True,
            consistency=facts.consistency,
            pause_ms=facts.pause_ms,
            taken_at=facts.taken_at or self._parts.node.clock.now(),
            message=facts.message,
        )
        await keep_snapshot(self._state, self._taking)

    async def _keep(self, facts: SnapshotFacts) -> None:
        """Have its pools remember it. Raises WeftError: then none of them does."""
        try:
            for layers, disks in self._pools():
                snapshot = KeptSnapshot(
                    short_id(self._snapshot.uid),
                    self._snapshot.uid,
                    {disk: await self._describe_disk(disk) for disk in disks},
                    memory_bytes=facts.memory_bytes if ROOT in disks else 0,
                    workload=self._local.spec.workload.uid,
                )
                await layers.keep(snapshot)
        except WeftError:
            await self._drop()
            raise

    async def _drop(self) -> None:
        for layers, _ in self._pools():
            await layers.drop(short_id(self._snapshot.uid))

    async def _describe_disk(self, disk: str) -> KeptDisk:
        id_, tip, driver = self._id(disk), self._layer(disk), self._drivers[disk]
        chain = [layer.id for layer in await self._layers(disk).list_layers(id_)]
        facts = await driver.inspect(id_)
        assert facts is not None  # it was there as this step began
        return KeptDisk(tuple(chain[: chain.index(tip) + 1]), facts.size_bytes, self._taking.disks[disk].name)

    async def _find_kept(self) -> list[KeptSnapshot]:
        """Find what its pools remember of it."""
        found = [one for layers, _ in self._pools() for one in await layers.list_kept()]
        return [one for one in found if one.uid == self._snapshot.uid]

    async def _describe(self, memory_bytes: int = 0) -> SnapshotReport:
        """The report of a snapshot that its pools remember."""
        kept, taking = await self._find_kept(), self._taking
        return replace(
            self._report(),
            phase="ready",
            consistency=taking.consistency,
            disks={disk: facts.size_bytes for one in kept for disk, facts in one.disks.items()},
            size=sum(one.used_bytes for one in kept),
            memory=memory_bytes or sum(one.memory_bytes for one in kept),
            pause_ms=taking.pause_ms,
            taken_at=taking.taken_at or self._parts.node.clock.now(),
            message=taking.message,
        )

    async def _fail(self, problem: Exception) -> None:
        reason, message = describe_problem(problem)
        if self._taking.finished and self._drivers:
            await self._drop()  # its memory too
        await self._end(replace(self._report(), phase="failed", reason=reason, message=message))

    async def _end(self, report: SnapshotReport) -> None:
        # The server hears that its node keeps it no later than that it is ready: else it could be deleted in between, and stay.
        self._state.held_until = 0.0
        await self._parts.snapshots.refresh()
        await keep_snapshot(self._state, None, report)
        if self._runtime is not None:
            with contextlib.suppress(WeftError, OSError):  # the next one takes its place
                await self._runtime.forget(self._local.id, self._snapshot.uid)

    def _report(self) -> SnapshotReport:
        root = self._taking.disks[ROOT]
        return SnapshotReport(uid=self._snapshot.uid, pool=root.pool, pool_id=root.pool_id)

    def _plan(self, overlays: dict[str, str]) -> SnapshotPlan:
        memory = self._layers(ROOT).memory_path(short_id(self._snapshot.uid)) if self._snapshot.memory else ""
        serials = {_name_serial(disk, self._taking.disks[disk]): path for disk, path in overlays.items()}
        hold = HOLD_SECONDS if self._snapshot.turn else 0.0
        return SnapshotPlan(self._snapshot.uid, serials, memory, freeze=not memory, hold=hold)

    async def _is_alive(self) -> bool:
        return (await self._parts.runtimes.inspect(self._local)).state in ALIVE

    def _pools(self) -> list[tuple[Layers, list[str]]]:
        """Each of its pools' drivers once, and the disks in it; the root disk's is the last one, so that a snapshot with its root
        disk is whole."""
        found: dict[int, tuple[Layers, list[str]]] = {}
        for disk, driver in self._drivers.items():
            found.setdefault(id(driver), (self._layers(disk), []))[1].append(disk)
        return sorted(found.values(), key=lambda one: ROOT in one[1])

    def _layers(self, disk: str) -> Layers:
        driver = self._drivers[disk]
        assert isinstance(driver, HasLayers)  # see _find_parts
        return driver.layers

    def _layer(self, disk: str) -> str:
        return name_layer(self._snapshot.uid, disk)

    def _id(self, disk: str) -> str:
        return self._local.id if disk == ROOT else disk


def _lost_memory(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} does not run, so it has no memory to keep",
        reason="noMemory",
        hint="take the snapshot without memory, or start the VM first",
    )


def _name_serial(disk: str, place: TakenDisk) -> str:
    return ROOT_SERIAL if disk == ROOT else name_serial(place.name)
