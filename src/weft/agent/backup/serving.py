"""Serves a backup to the VM that begins from it, and has that copy its disks meanwhile, until it stands alone.

The pool gets files that stand for the disks (``Layer.server``), kept as a snapshot; a VM's disks are made over them as over any
snapshot's. Which of the layers are such files is in the pool's records, so an agent made anew goes on where the last one was. The
VM's machine waits for the server as long as it is away. Once a disk has all, its file leaves every chain; the snapshot goes last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from weft.agent.snapshot.turns import list_ids
from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.table import AllocationTable
from weft.agent.volume.pools import Pools
from weft.agent.workload.runtimes import Runtimes
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.backup.process.job import Job, JobLine
from weft.contracts.clock import Clock
from weft.contracts.driver.layers import CopiesDisks, HasLayers, KeptDisk, KeptSnapshot
from weft.contracts.driver.snapshot import CanSnapshot
from weft.kinds.allocation import ROOT
from weft.kinds.fields.backup_work import BackupOrder
from weft.objects.errors import DriverFailed, WeftError, describe_failure
from weft.objects.identity import short_id

LOOK_SECONDS, RETRY_SECONDS = 0.3, 3.0

log = logging.getLogger("weft.agent")
Note = Callable[[JobLine], None]
Run = Callable[[Job], AsyncIterator[JobLine]]
Open = Callable[[BackupOrder], Awaitable[Job]]


class Serving:
    """``open_job`` reads what a server's process needs; ``run`` has one do a job; ``taken_in`` is called once a pool has more."""

    def __init__(
        self,
        pools: Pools,
        table: AllocationTable,
        runtimes: Runtimes,
        clock: Clock,
        open_job: Open,
        run: Run,
        taken_in: Callable[[], None],
    ) -> None:
        self._pools, self._table, self._runtimes, self._clock = pools, table, runtimes, clock
        self._open, self._run, self._taken_in = open_job, run, taken_in

    async def serve(self, order: BackupOrder, note: Note) -> JobLine:
        """Serve the backup until a VM has copied all of it. Raises WeftError before one could begin from it, not after that."""
        driver = await self._pools.find(order.pool)
        if not isinstance(driver, HasLayers) or not isinstance(driver, CopiesDisks):
            raise DriverFailed(f"storage pool {order.pool} can't take backups in", reason="unsupported")
        if all(one.uid != order.snapshot for one in await driver.layers.list_kept()):
            await self._open(order)  # a backup that can't be read is never begun from
            await self._stand_in(driver, order)
        self._taken_in()
        said = JobLine()

        def put(line: JobLine) -> None:
            nonlocal said
            said = line
            note(line)

        put(said)
        local = await self._await_vm(order)
        server = asyncio.ensure_future(self._keep_server(order, local.id, put))
        try:
            while not await self._copy(driver, order, put):
                await self._clock.sleep(RETRY_SECONDS)
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
        await driver.layers.drop(short_id(order.snapshot))
        self._taken_in()
        return JobLine(ended="done")

    async def _stand_in(self, driver: CopiesDisks, order: BackupOrder) -> None:
        layers = {name: _name_layer(order, key) for name, key in order.disks.items()}
        for name, layer in layers.items():
            await driver.copies.stand_in(layer, f"{_name_socket(order)}/{name}")
        kept = {
            key: KeptDisk((layers[name],), int(order.manifest["disks"][name]["size"]), "" if key == ROOT else name)
            for name, key in order.disks.items()
        }
        await driver.copies.take_in(KeptSnapshot(short_id(order.snapshot), order.snapshot, kept))

    async def _await_vm(self, order: BackupOrder) -> LocalAllocation:
        while (found := self._find_vm(order)) is None:
            await self._clock.sleep(LOOK_SECONDS)
        return found

    def _find_vm(self, order: BackupOrder) -> LocalAllocation | None:
        for state in self._table:
            origin = state.local.spec.origin
            if origin is not None and origin.snapshot == order.snapshot and not state.released:
                return state.local
        return None

    async def _keep_server(self, order: BackupOrder, guest_id: str, note: Note) -> None:
        """Have a process serve it; another one if that ends."""
        while True:
            try:
                runtime = self._runtimes.of(await self._await_vm(order))
                if not isinstance(runtime, CanSnapshot):
                    raise DriverFailed("its runtime can't stand on a backup", reason="unsupported")
                user = await runtime.snapshots.find_user(guest_id)
                job = await self._open(order)
                async for line in self._run(_serve_to(job, order, user)):
                    if line.ended:
                        raise DriverFailed(line.message or "its server ended", reason=line.reason or None)
                    note(JobLine(reason=line.reason, message=f"the VM waits: {line.message}" if line.message else ""))
                why = "its server ended"
            except (WeftError, OSError) as problem:
                why = describe_failure(problem)
            note(JobLine(reason="repositoryWaits", message=f"the VM waits: {why}"))
            log.warning("backup %s is not served: %s", order.name, why)
            await self._clock.sleep(RETRY_SECONDS)

    async def _copy(self, driver: HasLayers, order: BackupOrder, note: Note) -> bool:
        """Have the VM copy one disk after the other; whether it stands alone now."""
        local = self._find_vm(order)
        if local is None:
            return False  # the order goes with it
        runtime, ids = self._runtimes.of(local), list_ids(local)
        volumes = {volume.uid: volume.name for volume in local.spec.volumes}
        assert local.spec.origin is not None
        for disk, key in local.spec.origin.disks.items():
            layer = _name_layer(order, key)
            chain = await driver.layers.list_layers(ids[disk]) if disk in ids else []
            path = next((one.path for one in chain if one.id == layer), None)
            if path is None:
                if await self._pools.inspect(local.spec, ids[disk], disk) is None:
                    return False  # it is not made yet
                continue
            facts = await self._runtimes.inspect(local)
            if facts.state != "running" or not isinstance(runtime, CanSnapshot):
                return False
            try:
                serial = ROOT_SERIAL if disk == ROOT else name_serial(volumes[disk])
                await runtime.snapshots.absorb(local.id, serial, path)
                await driver.layers.forget_layer(ids[disk], layer)
            except (WeftError, OSError) as problem:
                log.info("%s does not stand alone yet: %s", local.what, problem)
                return False
        return True


def _name_layer(order: BackupOrder, key: str) -> str:
    return short_id(f"{order.snapshot}/{key}")


def _name_socket(order: BackupOrder) -> str:
    return f"weft-backup-{short_id(order.snapshot)}"


def _serve_to(job: Job, order: BackupOrder, user: int) -> Job:
    return msgspec.structs.replace(job, serve_at=_name_socket(order), serve_to=[user])
