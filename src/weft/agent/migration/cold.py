"""Both ends of a cold migration: the disks are sent as they are, and the guest may start at the target once that has saved that all
of them arrived. Until then the disks are the source's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from weft.agent.migration.disk_transfer import count_data
from weft.agent.migration.history import HistorySender, mark_log
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, Role
from weft.agent.migration.target import Waiter
from weft.agent.migration.transport import MigrationConnection
from weft.agent.problem import describe_problem
from weft.agent.snapshot.transfer import ArrivingLayers, id_of, pack_layers, send_layers
from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.console_log import read_console, take_printed
from weft.agent.workload.kind import Prepared
from weft.agent.workload.kinds import kind_of
from weft.contracts.driver.runtime import CanCarry, RuntimeDriver
from weft.contracts.driver.volume import CanReceive, VolumeFacts
from weft.kinds.allocation import ROOT
from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.protocol.migration import MigrationAnswer, MigrationRequest

REPORT_SECONDS = 1.0
SAVED = "saved"  # a suspended guest but for its disks, sent like one of them
_SPARE_BYTES = 64 << 20  # of a disk's file, beside the guest's data


def list_disks(local: LocalAllocation) -> list[str]:
    """The disks that migrate: the root disk as ROOT, volumes by uid. A root that is its image's is pulled by each node."""
    migration = local.spec.migration
    shared = migration.shared if migration is not None else ()
    roots = (ROOT,) if kind_of(local.spec).has_root_disk else ()
    return [disk for disk in (*roots, *(volume.uid for volume in local.spec.volumes)) if disk not in shared]


async def find_saved(runtime: RuntimeDriver[Any], guest_id: str) -> CanCarry | None:
    """The runtime, if it has the guest suspended."""
    saved = isinstance(runtime, CanCarry) and (await runtime.inspect(guest_id)).state == "suspended"
    return runtime if saved and isinstance(runtime, CanCarry) else None


async def complete_disk(volumes: CanReceive, local: LocalAllocation, disk: str, prepared: Prepared, form: str) -> None:
    """Complete a disk that has arrived; a root disk is based on this node's copy of its image. Raises DriverFailed."""
    if disk == ROOT and (image := prepared.image) is not None:
        await volumes.complete(local.id, base=image.disk, base_format=image.disk_format)
    else:
        await volumes.complete(local.id if disk == ROOT else disk, form=form)


class ColdTarget(Waiter):
    def __init__(self, context: MigrationContext, prepared: Prepared) -> None:
        super().__init__(context)
        self._prepared = prepared
        self._come: set[str] = set()
        self._layers = ArrivingLayers(context.node.pools, context.local, list_disks(context.local))
        self._listener.receive = self

    async def _recall(self) -> None:
        if self.migration.taken:
            await self._layers.settle()
            self._report(phase="takenOver")

    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        if ask.do == "takeOver" and not self.migration.taken:
            needed = (*list_disks(self._local), *([SAVED] if self._migration.saves == "must" else ()))
            missing = set(needed) - self._come
            if missing:
                raise IllegalTransition(f"disks have not arrived: {', '.join(sorted(missing))}")
            take_printed(self._runtime, self._local.id, ask.printed)
            try:
                await self._keep(taken=True)
            except WeftError:
                self._keep(taken=False)
                raise
            spent = ask.elapsed_ms
            self._history.begin()
            self._report(phase="takenOver", sent_bytes=ask.sent_bytes, elapsed_ms=spent)
        if ask.do == "layers" and not self.migration.taken:
            await self._layers.expect(ask.layers)
        if ask.do == "takeOver":
            await self._layers.settle()
        return MigrationAnswer(message=self.report.phase)

    async def begin(self, disk: str) -> tuple[Path, int]:
        """The path for the file of an arriving disk, and its greatest length. Raises InvalidInput."""
        local, root = self._local, self._prepared.root
        if disk == SAVED and isinstance(self._runtime, CanCarry) and not self.migration.taken:
            most = 2 * local.spec.resources.memory + local.spec.resources.disk + _SPARE_BYTES
            return Path(await self._runtime.carrying.expect(local.id)), most
        if "/" in disk and not self.migration.taken:
            return await self._layers.begin(disk)
        if disk not in list_disks(local) or self.migration.taken:
            raise InvalidInput(f"{local.what}: disk {disk} is not part of this migration")
        sizes = {volume.uid: volume.size for volume in local.spec.volumes}
        sizes[ROOT] = max(local.spec.resources.disk, root.size_bytes if root is not None else 0)
        volumes = await self._find_volumes(disk)
        return Path(volumes.begin(id_of(local, disk))), 2 * sizes[disk] + _SPARE_BYTES

    async def complete(self, disk: str, form: str) -> None:
        """The whole file has arrived. Raises InvalidInput, DriverFailed."""
        if self.migration.taken:
            raise InvalidInput(f"{self._local.what}: its disk {disk} has already arrived")
        if "/" in disk:
            await self._layers.complete(disk, form)
            return
        if disk == SAVED and isinstance(self._runtime, CanCarry):
            local, prepared = self._local, self._prepared
            make_plan = partial(kind_of(local.spec).plan_guest, local, prepared)
            await self._runtime.carrying.unpack(local.id, local.uid, local.spec.incarnation, make_plan)
            self._come.add(disk)
            return
        await complete_disk(await self._find_volumes(disk), self._local, disk, self._prepared, form)
        self._come.add(disk)

    async def _find_volumes(self, disk: str) -> CanReceive:
        volumes = await self._node.pools.of(self._local.spec, disk)
        if not isinstance(volumes, CanReceive):
            raise InvalidInput(
                f"volume driver {volumes.name} of this node can't receive disks from another node", reason="unsupported"
            )
        return volumes


class ColdSource(Role):
    def __init__(self, context: MigrationContext) -> None:
        super().__init__(context)
        self._limits = [self._node.limit, Limit(self._migration.bytes_per_second, self._node.clock)]
        self._task: asyncio.Task[None] | None = None
        self._history: HistorySender | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._history is not None:
            await self._history.release()
            self.rest = self._history.task

    async def _run(self) -> None:
        """Run the migration; no failure here leaves the guest with two owners: it starts here again only after the target has given
        up."""
        migration, node = self._migration, self._node
        connection = node.wire.make_connection(
            self.migration.key, migration.address, migration.peer_uid, self._limits, migration.peer_ca
        )
        showing = asyncio.ensure_future(self._show(connection))
        try:
            await self._send(connection)
        except (WeftError, OSError) as problem:
            reason, message = describe_problem(problem)
            self._report(phase="failed", reason=reason, message=message)
        finally:
            showing.cancel()
            if self._history is None:
                connection.close()

    async def _send(self, connection: MigrationConnection) -> None:
        began = self._node.clock.elapsed()
        if (await connection.ask(MigrationRequest("status"))).message != "takenOver":
            found = {disk: await self._find(disk) for disk in list_disks(self._local)}
            files = {disk: (Path(facts.path), facts.format) for disk, facts in found.items()}
            if (carrier := await find_saved(self._runtime, self._local.id)) is not None:
                files[SAVED] = (Path(await carrier.carrying.pack(self._local.id)), "raw")
                self._report(
                    plan=PlannedMigration(
                        mode="saved", reason="it is stopped, and resumes on the target from its saved state"
                    )
                )
            elif self._migration.saves == "must":  # without its memory it would boot there
                raise IllegalTransition(f"{self._local.what} is not suspended any more, so its memory can't be sent")
            packed = await pack_layers(self._node.pools, self._local, self.migration.key, found)
            paths = [*packed.files.values(), *(path for path, _ in files.values())]
            total = sum([await asyncio.to_thread(count_data, path) for path in paths])
            self._report(phase="migrating", total_bytes=total, remaining_bytes=total)
            await send_layers(connection, packed)
            for disk, (path, form) in files.items():
                await connection.carry_file(disk, path, form)
            spent = round((self._node.clock.elapsed() - began) * 1000)
            mark = await mark_log(self._node, self._local)
            printed, sent = read_console(self._runtime, self._local.id), connection.meter.sent
            ask = MigrationRequest("takeOver", sent_bytes=sent, elapsed_ms=spent, printed=printed, log=mark)
            await connection.order(ask)
            self._history = HistorySender(
                lambda: connection,
                connection.close,
                self._node,
                self._local,
                between_clusters=self._between_clusters,
            )
        self._keep(taken=True)
        spent = round((self._node.clock.elapsed() - began) * 1000)
        sent = connection.meter.sent
        self._report(phase="handedOver", sent_bytes=sent, remaining_bytes=0, elapsed_ms=spent)

    async def _find(self, disk: str) -> VolumeFacts:
        facts = await self._node.pools.inspect(self._local.spec, id_of(self._local, disk), disk)
        if facts is None:
            raise DriverFailed(f"{self._local.what}: its disk {disk} is not on this node", details={"step": "disk"})
        if facts.rbd is not None:
            raise InvalidInput(
                f"{self._local.what}: its disk {facts.path} is an RBD image, and not copied while the guest is stopped",
                reason="unsupported",
                hint="migrate it to a node that shares its storage pool, or while it runs",
            )
        return facts

    async def _show(self, connection: MigrationConnection) -> None:
        clock, began, before = self._node.clock, self._node.clock.elapsed(), 0
        while True:
            await clock.sleep(REPORT_SECONDS)
            sent = connection.meter.sent
            left = max(0, self.report.total_bytes - sent)
            rate, before = int((sent - before) / REPORT_SECONDS), sent
            elapsed = round((clock.elapsed() - began) * 1000)
            if self.report.phase == "migrating":
                self._report(sent_bytes=sent, remaining_bytes=left, bytes_per_second=rate, elapsed_ms=elapsed)
