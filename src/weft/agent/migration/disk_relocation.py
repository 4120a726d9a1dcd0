"""Relocates one disk of an allocation to another pool of its node: mirrored while the guest runs, else copied.

The state is saved before it is reported: from ``there`` on the new pool's file is the disk, and the old one is removed. Begins
with the runtime's state, so that the next agent continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path
from typing import Literal

import msgspec

from weft.agent.migration.cold import complete_disk
from weft.agent.migration.role import NodeContext
from weft.agent.problem import describe_problem
from weft.agent.snapshot.transfer import adopt_layers
from weft.agent.state.allocation import DiskRelocation, LocalAllocation
from weft.agent.state.allocation_state import AllocationState
from weft.agent.workload.kind import Prepared
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.disk_relocation import CanRelocate, Relocations
from weft.contracts.driver.layers import CarriedDisk, CarriesLayers
from weft.contracts.driver.runtime import GuestDisk
from weft.contracts.driver.volume import CanReceive, VolumeDriver, VolumeFacts
from weft.kinds.allocation import ROOT, list_disks
from weft.kinds.fields.allocated_migration import AllocatedDiskRelocation, MigrationReport, PlannedMigration
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unavailable, WeftError

LOOK_SECONDS = 0.2
_SECTOR = 512
_ALIVE = ("starting", "running", "paused")


class GivenUp(Exception):
    """The spec no longer has the relocation; the text says why."""


class DiskRelocator:
    """Leads one relocation; saves its progress in ``state``."""

    def __init__(
        self,
        state: AllocationState,
        local: LocalAllocation,
        relocation: DiskRelocation,
        prepared: Prepared,
        node: NodeContext,
    ) -> None:
        self.relocation = relocation
        self.report = MigrationReport(key=relocation.key, phase="preparing")
        self._state, self._local, self._prepared = state, local, prepared
        self._runtime, self._pools, self._clock = node.runtimes.of(local), node.pools, node.clock
        self._order = local.spec.storage
        self._started_at = self._clock.elapsed()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def put(self, local: LocalAllocation) -> None:
        self._local, self._order = local, local.spec.storage

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                if self.relocation.state != "there":
                    await self._relocate()
                await self._clear()
            except Unavailable:  # its driver is reconnecting
                await self._clock.sleep(LOOK_SECONDS)
                continue
            except (GivenUp, WeftError, OSError) as problem:
                await self._end(problem)
            return

    async def _end(self, problem: GivenUp | WeftError | OSError) -> None:
        if isinstance(problem, GivenUp):
            await self._undo("abandoned", "cancelled", str(problem))
            return
        reason, message = describe_problem(problem)
        await self._undo("failed", "noSpace" if "No space left" in message else reason, message)

    async def _relocate(self) -> None:
        phase = "none"
        if isinstance(self._runtime, CanRelocate):
            phase = (await self._runtime.relocations.progress(self._local.id, self.relocation.key)).phase
        self._check_spec()
        if self._is_one_place() or (phase == "none" and await self._has_gone()):
            await self._keep(state="there")
            return
        guest = await self._runtime.inspect(self._local.id)
        if phase == "none" and guest.state not in _ALIVE:
            await self._copy()
            return
        relocations = self._relocations()
        if phase == "none":
            await self._begin(relocations)
        await self._follow(relocations)

    async def _begin(self, relocations: Relocations) -> None:
        """Make an empty disk in the new pool, and start to mirror the old one there. Raises WeftError."""
        here, there = await self._here(), await self._there()
        facts = await self._facts(here)
        image = self._prepared.image if self.relocation.disk == ROOT else None
        base = image.disk if image is not None else None
        form: Literal["qcow2", "raw"] = image.disk_format if image is not None else "qcow2"
        await there.remove(self._id)
        plan = PlannedMigration(
            mode="mirror", reason="the guest is running: it writes to both disks until the copy is complete"
        )
        self._report(phase="migrating", total_bytes=facts.used_bytes, remaining_bytes=facts.used_bytes, plan=plan)
        await self._carry_layers(here, there)
        fresh = await there.ensure(self._id, size_bytes=facts.size_bytes, base=base, base_format=form)
        disk = GuestDisk(
            fresh.path,
            fresh.format,
            self._serial,
            size_bytes=facts.size_bytes,
            base=base if fresh.rbd is None else None,  # an RBD image stands on its own in its pool
            base_format=form,
            layers=await adopt_layers(there, self._id),
            rbd=fresh.rbd,
        )
        order = self._order
        limit = order.bytes_per_second if order is not None else 0
        await relocations.begin(self._local.id, self.relocation.key, disk, limit)

    async def _follow(self, relocations: Relocations) -> None:
        """Follow the mirror until the guest writes to the new disk. Raises GivenUp, DriverFailed."""
        while True:
            facts = await relocations.progress(self._local.id, self.relocation.key)
            if facts.phase == "there":
                break
            if facts.phase in ("failed", "none"):
                raise DriverFailed(
                    f"{self._local.what}: its disk was not relocated: {facts.message or 'the copy has ended'}",
                    details={"step": "copy"},
                )
            if facts.phase == "copying":
                self._check_spec()
                left, sent = max(0, facts.total_bytes - facts.done_bytes), facts.done_bytes
                self._report(phase="migrating", sent_bytes=sent, total_bytes=facts.total_bytes, remaining_bytes=left)
                await self._clock.sleep(LOOK_SECONDS)
                continue
            if facts.phase == "ready":
                self._check_spec()
                self._report(phase="switching", sent_bytes=facts.done_bytes, remaining_bytes=0)
            before = self._clock.elapsed()
            await relocations.pivot(self._local.id, self.relocation.key)
            self._report(pause_ms=max(1, round((self._clock.elapsed() - before) * 1000)))
        await self._keep(state="there")
        await relocations.forget(self._local.id, self.relocation.key)

    async def _copy(self) -> None:
        """Copy the file of a guest that doesn't run, without its holes. Raises WeftError, OSError, GivenUp."""
        here, there = await self._here(), await self._there()
        facts = await here.inspect(self._id)
        if facts is None:  # never made
            await self._keep(state="there")
            return
        if facts.rbd is not None or not isinstance(there, CanReceive):
            raise InvalidInput(
                f"{self._local.what}: its disk goes from pool driver {here.name} to {there.name} only while the guest runs",
                reason="unsupported",
                hint="start it, and relocate the disk then",
            )
        work = Path(there.begin(self._id))
        plan = PlannedMigration(mode="copy", reason="the guest is not running")
        self._report(phase="migrating", total_bytes=facts.used_bytes, remaining_bytes=facts.used_bytes, plan=plan)
        free = shutil.disk_usage(work.parent.parent).free
        if facts.used_bytes > free:
            raise DriverFailed(
                f"{self._local.what}: No space left in storage pool {self.relocation.pool}", details={"step": "copy"}
            )
        await self._carry_layers(here, there)
        await self._copy_file(Path(facts.path), work, facts.used_bytes, stopped=True)
        await complete_disk(there, self._local, self.relocation.disk, self._prepared, facts.format)
        await self._keep(state="there")

    async def _copy_file(self, path: Path, work: Path, size: int, *, stopped: bool) -> None:
        work.parent.mkdir(mode=0o700, exist_ok=True)
        copying = await asyncio.create_subprocess_exec(
            *("cp", "--sparse=always", "--reflink=auto", str(path), str(work)), stderr=asyncio.subprocess.PIPE
        )
        try:
            while copying.returncode is None:
                self._check_spec(stopped=stopped)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await copying.wait()
                done = await asyncio.to_thread(_measure, work)
                self._report(sent_bytes=done, remaining_bytes=max(0, size - done))
            if copying.returncode:
                output = (await copying.stderr.read()).decode(errors="replace").strip() if copying.stderr else ""
                raise DriverFailed(f"{self._local.what}: its disk can't be copied: {output}", details={"step": "copy"})
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                copying.kill()
            await copying.wait()
            await asyncio.to_thread(work.unlink, missing_ok=True)
            raise

    async def _carry_layers(self, here: VolumeDriver, there: VolumeDriver) -> None:
        """Copy what the disk stands on, with its snapshots: the new pool holds them. Raises WeftError, OSError, GivenUp."""
        local, id_, disk = self._local, self._id, self.relocation.disk
        if not isinstance(here, CarriesLayers):
            await self._pools.refuse_layers(local.spec, id_, disk, local.what)
            return
        workload, key = local.spec.workload.uid, self.relocation.key
        carried, files = await here.transfer.pack(id_, disk, workload, key, memory=disk == ROOT)
        if carried == CarriedDisk():
            return
        if not isinstance(there, CarriesLayers):
            raise InvalidInput(
                f"volume driver {there.name} of this node can't receive the snapshots of a disk", reason="unsupported"
            )
        await there.transfer.expect(id_, carried)
        for name, path in files.items():
            work = Path(await there.transfer.begin(id_, name))
            size = (await asyncio.to_thread(os.stat, path)).st_blocks * _SECTOR
            await self._copy_file(Path(path), work, size, stopped=False)
            await there.transfer.complete(id_, name)

    async def _clear(self) -> None:
        """Remove the old file, after the new one was saved as the disk; its snapshots go with it."""
        if not self._is_one_place():
            here, there = await self._here(), await self._there()
            if isinstance(there, CarriesLayers):
                await there.transfer.settle(self._id)
            if isinstance(here, CarriesLayers):
                disk, workload = self.relocation.disk, self._local.spec.workload.uid
                await here.transfer.release(disk, workload, memory=disk == ROOT)
            await here.remove(self._id)
        await self._keep(state="clear")
        elapsed = round((self._clock.elapsed() - self._started_at) * 1000)
        self._report(phase="takenOver", reason="", message="", remaining_bytes=0, elapsed_ms=elapsed)

    async def _undo(self, phase: str, reason: str, message: str) -> None:
        """Leave the disk where it is, and remove its new file."""
        if self.relocation.state in ("there", "clear"):  # only the old file's removal has failed: retry it
            self._report(reason=reason, message=message)
            await self._clock.sleep(LOOK_SECONDS * 5)
            return
        try:
            if isinstance(self._runtime, CanRelocate):
                await self._runtime.relocations.cancel(self._local.id, self.relocation.key)
        except IllegalTransition:  # it is complete, which the next try finds
            return
        except WeftError as problem:
            self._report(reason=problem.token, message=problem.message)
            return
        with contextlib.suppress(WeftError, OSError):
            await self._facts(await self._here())  # without the old file, the new one may be the only one
            there = await self._there()
            if not self._is_one_place():
                await there.remove(self._id)
            if isinstance(there, CanReceive):
                await asyncio.to_thread(Path(there.begin(self._id)).unlink, missing_ok=True)
        await self._keep(state="over", reason=reason, message=message)
        self._report(phase=phase, reason=reason, message=message)

    def _check_spec(self, *, stopped: bool = False) -> None:
        if self._order is None or self._order.key != self.relocation.key or self._order.cancel:
            raise GivenUp("cancelled on request")
        if stopped and self._local.spec.desired == "run":
            raise GivenUp("the workload is starting")

    def _relocations(self) -> Relocations:
        if not isinstance(self._runtime, CanRelocate):
            raise InvalidInput(
                f"{self._local.what}: runtime {self._runtime.name} can't relocate the disks of a running VM",
                reason="unsupported",
                hint="stop it first",
            )
        return self._runtime.relocations

    @property
    def _id(self) -> str:
        return self._local.id if self.relocation.disk == ROOT else self.relocation.disk

    @property
    def _serial(self) -> str:
        named = {volume.uid: name_serial(volume.name) for volume in self._local.spec.volumes}
        return ROOT_SERIAL if self.relocation.disk == ROOT else named[self.relocation.disk]

    def _places(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Pool and storage of the old file and of the new one."""
        return (self.relocation.old_pool, self.relocation.old_pool_id), (self.relocation.pool, self.relocation.pool_id)

    def _is_one_place(self) -> bool:
        """Whether both files are the same: a restored server may not know that the disk was relocated."""
        (pool, storage), (new_pool, new_storage) = self._places()
        return pool == new_pool or (storage == new_storage != "")

    async def _here(self) -> VolumeDriver:
        return await self._pools.find(*self._places()[0])

    async def _there(self) -> VolumeDriver:
        return await self._pools.find(*self._places()[1])

    async def _has_gone(self) -> bool:
        """Whether the disk is in the new pool already: a restored server may not know, or the end of the copy wasn't saved."""
        here, there = await self._here(), await self._there()
        return await here.inspect(self._id) is None and await there.inspect(self._id) is not None

    async def _facts(self, here: VolumeDriver) -> VolumeFacts:
        facts = await here.inspect(self._id)
        if facts is None:
            raise DriverFailed(f"{self._local.what}: its disk is not on this node", details={"step": "disk"})
        return facts

    async def _keep(self, **fields: object) -> None:
        self.relocation = msgspec.structs.replace(self.relocation, **fields)
        await self._state.keep_relocation(self.relocation)

    def _report(self, **fields: object) -> None:
        report = msgspec.structs.replace(self.report, **fields)
        elapsed = round((self._clock.elapsed() - self._started_at) * 1000)
        self.report = msgspec.structs.replace(report, elapsed_ms=elapsed)
        self._state.wake()


def begin_relocation(local: LocalAllocation, order: AllocatedDiskRelocation) -> DiskRelocation:
    """The first state of the relocation in ``order``."""
    pool, storage = list_disks(local.spec).get(order.disk, ("", ""))
    return DiskRelocation(order.key, order.disk, order.pool, order.pool_id, old_pool=pool, old_pool_id=storage)


def report_relocation(local: LocalAllocation, relocation: DiskRelocation | None) -> MigrationReport | None:
    """The report of the spec's relocation while no process leads it."""
    order = local.spec.storage
    if order is None:
        return None
    if relocation is None or relocation.key != order.key:
        return MigrationReport(key=order.key, phase="preparing")
    if relocation.state == "clear":
        return MigrationReport(key=order.key, phase="takenOver")
    if relocation.state == "over":
        given_up = relocation.reason == "cancelled"
        phase = "abandoned" if given_up else "failed"
        return MigrationReport(key=order.key, phase=phase, reason=relocation.reason, message=relocation.message)  # type: ignore[arg-type]
    return MigrationReport(key=order.key, phase="preparing")


def _measure(file: Path) -> int:
    """The bytes that it takes up; 0 if it is missing."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_blocks * 512
    return 0
