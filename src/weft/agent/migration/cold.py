"""The two sides of a move of a guest that doesn't run: its disks go over as they are, and it may start at the target once
that one has remembered that they are all there. Until then they are the source's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from weft.agent.migration.disk_transfer import count_data
from weft.agent.migration.relay import Limit
from weft.agent.migration.role import MigrationContext, Role
from weft.agent.migration.target import Waiter
from weft.agent.migration.transport import Connection
from weft.agent.state.allocation import LocalAllocation
from weft.agent.workload.console_log import read_console, take_printed
from weft.agent.workload.vm import Prepared
from weft.contracts.driver.runtime import CanCarry, RuntimeDriver
from weft.contracts.driver.volume import CanReceive, VolumeFacts
from weft.kinds.allocation import ROOT, PlannedMigration
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, WeftError
from weft.protocol.migration import MigrationAnswer, MigrationRequest

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 0.5
SAVED = "saved"  # what goes over like a disk: all of a container that was saved as it ran
_SPARE_BYTES = 64 << 20  # of a disk's file, beside what the guest has on it


def list_disks(wanted: LocalAllocation) -> list[str]:
    """The disks that go over, by the ids of both nodes: the root disk as ROOT, volumes by uid. A container's root is its image's,
    which each node has from the registry."""
    move = wanted.spec.move
    shared = move.shared if move is not None else ()
    roots = (ROOT,) if wanted.spec.container is None else ()
    return [disk for disk in (*roots, *(volume.uid for volume in wanted.spec.volumes)) if disk not in shared]


async def find_saved(runtime: RuntimeDriver[Any], guest_id: str) -> CanCarry | None:
    """Whoever has the guest saved as it ran, if it is."""
    saved = isinstance(runtime, CanCarry) and (await runtime.inspect(guest_id)).state == "suspended"
    return runtime if saved and isinstance(runtime, CanCarry) else None


class ColdTarget(Waiter):
    def __init__(self, brief: MigrationContext, prepared: Prepared) -> None:
        super().__init__(brief)
        self._prepared = prepared
        self._come: set[str] = set()
        self._door.receive = self

    async def _recall(self) -> None:
        if self.part.taken:
            self._tell(phase="takenOver")

    async def _respond(self, ask: MigrationRequest) -> MigrationAnswer:
        if ask.do == "takeOver" and not self.part.taken:
            missing = set(list_disks(self._wanted)) - self._come
            if missing:
                raise IllegalTransition(f"disks have not arrived: {', '.join(sorted(missing))}")
            take_printed(self._runtime, self._wanted.id, ask.printed)
            try:
                await self._keep(taken=True)
            except WeftError:
                self._keep(taken=False)
                raise
            spent = ask.elapsed_ms
            self._tell(phase="takenOver", sent_bytes=ask.sent_bytes, elapsed_ms=spent)
        return MigrationAnswer(message=self.report.phase)

    async def begin(self, disk: str) -> tuple[Path, int]:
        """Where the file of a disk that comes is written, and how large it can be. Raises InvalidInput."""
        wanted, root = self._wanted, self._prepared.root
        if disk == SAVED and isinstance(self._runtime, CanCarry) and not self.part.taken:
            most = 2 * wanted.spec.resources.memory + wanted.spec.resources.disk + _SPARE_BYTES
            return Path(await self._runtime.carrying.expect(wanted.id)), most
        if disk not in list_disks(wanted) or self.part.taken:
            raise InvalidInput(f"{wanted.what}: disk {disk} is not part of this migration")
        sizes = {volume.uid: volume.size for volume in wanted.spec.volumes}
        sizes[ROOT] = max(wanted.spec.resources.disk, root.size_bytes if root is not None else 0)
        volumes = await self._find_volumes(disk)
        return Path(volumes.begin(self._id_of(disk))), 2 * sizes[disk] + _SPARE_BYTES

    async def complete(self, disk: str, form: str) -> None:
        """All of it is there. Raises InvalidInput, DriverFailed."""
        if self.part.taken:
            raise InvalidInput(f"{self._wanted.what}: its disk {disk} has already arrived")
        if disk == SAVED and isinstance(self._runtime, CanCarry):
            await self._runtime.carrying.unpack(self._wanted.id, self._wanted.uid, self._wanted.spec.incarnation)
            return
        image = self._prepared.image if disk == ROOT else None
        volumes = await self._find_volumes(disk)
        if image is None:
            await volumes.complete(self._id_of(disk), form=form)
        else:
            base, form = image.disk, image.disk_format
            await volumes.complete(self._id_of(disk), base=base, base_format=form)
        self._come.add(disk)

    async def _find_volumes(self, disk: str) -> CanReceive:
        volumes = await self._ground.pools.of(self._wanted.spec, disk)
        if not isinstance(volumes, CanReceive):
            raise InvalidInput(
                f"volume driver {volumes.name} of this node can't receive disks from another node", reason="unsupported"
            )
        return volumes

    def _id_of(self, disk: str) -> str:
        return self._wanted.id if disk == ROOT else disk


class ColdSource(Role):
    def __init__(self, brief: MigrationContext) -> None:
        super().__init__(brief)
        self._limits = [self._ground.limit, Limit(self._move.bytes_per_second, self._ground.clock)]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Nothing can go wrong that matters who runs: the guest starts here again only when the target has given up."""
        move, ground = self._move, self._ground
        line = ground.wire.make_line(self.part.key, move.address, move.peer_uid, self._limits)
        showing = asyncio.ensure_future(self._show(line))
        try:
            await self._send(line)
        except (WeftError, OSError) as problem:
            reason = problem.token if isinstance(problem, WeftError) else "driverFailed"
            self._tell(phase="failed", reason=reason, message=str(problem))
        finally:
            showing.cancel()
            line.close()

    async def _send(self, line: Connection) -> None:
        began = self._ground.clock.elapsed()
        if (await line.ask(MigrationRequest("look"))).message != "takenOver":
            found = {disk: await self._find(disk) for disk in list_disks(self._wanted)}
            files = {disk: (Path(facts.path), facts.format) for disk, facts in found.items()}
            if (carrier := await find_saved(self._runtime, self._wanted.id)) is not None:
                files[SAVED] = (Path(await carrier.carrying.pack(self._wanted.id)), "raw")
                self._tell(
                    plan=PlannedMigration(
                        mode="saved", reason="it is stopped, and resumes on the target from its saved state"
                    )
                )
            total = sum([await asyncio.to_thread(count_data, path) for path, _ in files.values()])
            self._tell(phase="moving", total_bytes=total, remaining_bytes=total)
            for disk, (path, form) in files.items():
                await line.carry_file(disk, path, form)
            spent = round((self._ground.clock.elapsed() - began) * 1000)
            printed = read_console(self._runtime, self._wanted.id)
            ask = MigrationRequest("takeOver", sent_bytes=line.meter.sent, elapsed_ms=spent, printed=printed)
            await line.order(ask)
        self._keep(taken=True)
        spent = round((self._ground.clock.elapsed() - began) * 1000)
        sent = line.meter.sent
        self._tell(phase="handedOver", sent_bytes=sent, remaining_bytes=0, elapsed_ms=spent)

    async def _find(self, disk: str) -> VolumeFacts:
        facts = await self._ground.pools.inspect(self._wanted.spec, self._wanted.id if disk == ROOT else disk, disk)
        if facts is None:
            raise DriverFailed(f"{self._wanted.what}: its disk {disk} is not on this node", details={"step": "disk"})
        return facts

    async def _show(self, line: Connection) -> None:
        clock, began, before = self._ground.clock, self._ground.clock.elapsed(), 0
        while True:
            await clock.sleep(LOOK_SECONDS)
            sent = line.meter.sent
            left = max(0, self.report.total_bytes - sent)
            rate, before = int((sent - before) / LOOK_SECONDS), sent
            elapsed = round((clock.elapsed() - began) * 1000)
            if self.report.phase == "moving":
                self._tell(sent_bytes=sent, remaining_bytes=left, bytes_per_second=rate, elapsed_ms=elapsed)
