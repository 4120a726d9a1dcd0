"""Containers in machines of their own: the plan of a container, run by QEMU, with a small init of weft's around its process.

Reads and writes ``Host.state_dir/microvm``: of each container its record, exchange disk and root disk; its machine's record lies
below ``guests``, as the driver of machines has them, which does all that is a machine's. A container never depends on this
process.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock, SystemClock
from weft.contracts.driver.container import ContainerPlan, LogLine, LogPiece
from weft.contracts.driver.host import Host
from weft.contracts.driver.runtime import (
    ExecRequest,
    ExecSession,
    GuestFacts,
    GuestPlan,
    GuestStats,
    RuntimeProbe,
    SessionMark,
)
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.image_disk import PACKAGES, ImageDisks, ensure_overlay
from weft.drivers.runtime.qemu.microvm.exchange_disk import (
    make_exchange_disk,
    read_after,
    read_head,
    read_lines,
    write_config,
)
from weft.drivers.runtime.qemu.microvm.record import (
    MicrovmPaths,
    MicrovmRecord,
    describe_container,
    read_record,
    write_record,
)
from weft.drivers.runtime.qemu.microvm.session import KillableSession
from weft.drivers.runtime.qemu.microvm.translate import (
    KILL,
    MARK,
    check_plan,
    describe_run,
    plan_machine,
    translate_exec,
)
from weft.objects.errors import DriverFailed, IllegalTransition, NotFound, Unavailable

DRIVER = "microvm"
KERNEL, INITRD = "kernel", "initrd"
ENDING_SECONDS = 0.02
MOST_UNUSED_BYTES = 4 << 30  # disks of images that nothing here has, until the oldest go
_ALIVE = ("starting", "running", "paused")


class MicrovmDriver:
    """A RuntimeDriver[ContainerPlan] that can also freeze, exec, and tell log and stats. ``microvm_dir`` is the folder with what
    its machines boot; ``machines`` the node's driver of machines, if it has one: what that has found needn't be found twice."""

    name = DRIVER

    def __init__(
        self, host: Host, microvm_dir: Path, clock: Clock | None = None, machines: QemuDriver | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._microvm_dir, self._capacity = microvm_dir, host.capacity
        self._state = Path(host.state_dir) / DRIVER
        own = msgspec.structs.replace(host, state_dir=str(self._state), run_dir=str(Path(host.run_dir) / DRIVER))
        Path(own.run_dir).mkdir(mode=0o755, parents=True, exist_ok=True)
        self._machines = QemuDriver(own, self._clock, alike=machines)
        self.open_counters = self._machines.open_counters
        self._disks = ImageDisks(self._state / "images")
        self._known: dict[str, MicrovmRecord] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._ending: set[str] = set()

    async def probe(self) -> RuntimeProbe:
        found = await self._machines.probe()
        problems = self._find_problems() if found.usable else ["QEMU can't start machines on this node"]
        return RuntimeProbe(
            driver=DRIVER,
            usable=not problems,
            version=f"qemu {found.version}".strip(),
            accelerator=found.accelerator,
            machines=[],
            capabilities=[] if problems else ["exec", "stats", "log"],
            problems=[f"containers can't run in microVMs: {problem}" for problem in problems],
            kinds=("container",),
            isolations=("vm",),
        )

    def _find_problems(self) -> list[str]:
        missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None})
        if missing:
            return [f"programs are missing: apt-get install {' '.join(missing)}"]
        if not all((self._microvm_dir / name).is_file() for name in (KERNEL, INITRD)):
            return [
                f"{self._microvm_dir} has no kernel for them: build it (python -m weft.images microvm), copy the folder "
                "here, and name it with weft agent --microvm-dir"
            ]
        return []

    # The verbs of RuntimeDriver.

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        """See contracts.driver.runtime. Raises DriverFailed, InvalidInput, TooLarge."""
        probe = await self.probe()
        if not probe.usable:
            raise DriverFailed("; ".join(probe.problems), details={"step": "probe"})
        check_plan(plan)
        async with self._lock(plan.id):
            before = self._find(plan.id)
            if before is not None and before.plan.uid != plan.uid:
                raise DriverFailed(f"container/{plan.name}: id {plan.id} belongs to {before.plan.name} on this node")
            guest = await self._machines.inspect(plan.id)
            while guest.state in _ALIVE and plan.id in self._ending:
                await self._clock.sleep(ENDING_SECONDS)
                guest = await self._machines.inspect(plan.id)
            if before is not None and guest.state in _ALIVE:
                return await self.inspect(plan.id)
            await self._begin(plan, before)
            return await self.inspect(plan.id)

    async def _begin(self, plan: ContainerPlan, before: MicrovmRecord | None) -> None:
        paths, run = self._paths(plan.id), secrets.token_hex(15)

        def has_begun() -> bool:
            head = read_head(paths.exchange_disk)
            return head is not None and head.run == run

        try:
            base = before.base if before is not None else await self._disks.ensure_root(plan.layers, plan.disk_bytes)
            record = MicrovmRecord(plan, run, base)
            records = describe_run(plan, run)
            paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            await ensure_overlay(paths.root, base)
            make_exchange_disk(paths.exchange_disk)
            await asyncio.to_thread(write_config, paths.exchange_disk, records)
            await asyncio.to_thread(write_record, paths, record)
            self._known[plan.id] = record
            await self._machines.start(self._machine(record), has_begun)
        except BaseException:
            if not has_begun():
                await asyncio.shield(self._undo(plan.id, before))
            raise

    async def _undo(self, guest_id: str, before: MicrovmRecord | None) -> None:
        if before is not None:  # it is as ended as it was
            self._known[guest_id] = before
            await asyncio.to_thread(write_record, self._paths(guest_id), before)
            return
        await self._machines.stop(guest_id, grace_seconds=0)
        await self._machines.remove(guest_id)
        await self._forget(guest_id)

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        self._ending.add(guest_id)
        try:
            await self._machines.stop(guest_id, grace_seconds=grace_seconds)
        finally:
            self._ending.discard(guest_id)  # also when its caller gave up waiting

    async def inspect(self, guest_id: str) -> GuestFacts:
        record = self._find(guest_id)
        if record is None:
            return GuestFacts(guest_id, "", "", 0, "absent")
        guest = await self._machines.inspect(guest_id)
        return describe_container(record, guest, read_head(self._paths(guest_id).exchange_disk))

    async def recover(self) -> list[GuestFacts]:
        await asyncio.to_thread(self._disks.sweep)
        await self._machines.recover()
        found = []
        for folder in self._state.glob("containers/*"):
            if self._find(folder.name) is not None:
                found.append(await self.inspect(folder.name))
            else:  # of a removal, or a start, that was cut off
                await asyncio.to_thread(shutil.rmtree, folder, True)
        return found

    async def remove(self, guest_id: str) -> None:
        async with self._lock(guest_id):
            guest, record = await self._machines.inspect(guest_id), self._find(guest_id)
            if guest.state in _ALIVE and record is not None:
                raise IllegalTransition(f"container/{record.plan.name} is running", hint="stop it first")
            await self._machines.remove(guest_id)
            await self._forget(guest_id)
        self._locks.pop(guest_id, None)

    async def _forget(self, guest_id: str) -> None:
        paths = self._paths(guest_id)
        paths.record.unlink(missing_ok=True)  # first: a removal cut off half-way is no container without a root
        self._known.pop(guest_id, None)
        await asyncio.to_thread(shutil.rmtree, paths.state, True)
        folders = (self._state / "containers").glob("*")
        used = [Path(record.base).stem for folder in folders if (record := self._find(folder.name)) is not None]
        await asyncio.to_thread(self._disks.forget, used, MOST_UNUSED_BYTES)

    async def changed(self) -> None:
        await self._machines.changed()

    async def close(self) -> None:
        await self._machines.close()
        self._known.clear()

    # The optional protocols.

    async def freeze(self, guest_id: str) -> None:
        self._get(guest_id)
        await self._machines.hold(guest_id, True)

    async def resume(self, guest_id: str) -> None:
        self._get(guest_id)
        await self._machines.hold(guest_id, False)

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        record = self._get(guest_id)
        guest = await self._machines.inspect(guest_id)
        if guest.state not in _ALIVE:
            name = record.plan.name
            raise Unavailable(f"container/{name} is not running", hint=f"weft container start {name}")
        inside = translate_exec(record.plan, request)
        if mark is not None:
            return await self._machines.exec(guest_id, inside, mark)
        name = secrets.token_hex(8)
        inside.env[MARK] = name
        session = await self._machines.exec(guest_id, inside)
        return KillableSession(session, lambda: self._machines.exec(guest_id, ExecRequest([KILL, name])))

    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        self._get(guest_id)
        return await self._machines.stats(guest_id, disks=disks)

    async def read_log(self, guest_id: str, *, tail: int = -1, follow: bool = False) -> AsyncGenerator[LogLine, None]:
        self._get(guest_id)

        async def has_ended() -> bool:
            return (await self._machines.inspect(guest_id)).state not in _ALIVE

        path = self._paths(guest_id).exchange_disk
        async for line in read_lines(path, self._clock, tail=tail, follow=follow, has_ended=has_ended):
            yield line

    def read_log_after(self, guest_id: str, position: str) -> LogPiece:
        self._get(guest_id)
        return read_after(self._paths(guest_id).exchange_disk, position)

    # What is known.

    def _machine(self, record: MicrovmRecord) -> GuestPlan:
        kernel, initrd = (str(self._microvm_dir / name) for name in (KERNEL, INITRD))
        paths, size = self._paths(record.plan.id), Path(record.base).stat().st_size
        return plan_machine(record.plan, paths, record.base, size, kernel, initrd, self._capacity)

    def _find(self, guest_id: str) -> MicrovmRecord | None:
        record = self._known.get(guest_id) or read_record(self._paths(guest_id))
        if record is not None:
            self._known[guest_id] = record
        return record

    def _get(self, guest_id: str) -> MicrovmRecord:
        record = self._find(guest_id)
        if record is None:
            raise NotFound(f"this node has no container {guest_id}")
        return record

    def _paths(self, guest_id: str) -> MicrovmPaths:
        return MicrovmPaths(self._state / "containers" / guest_id)

    def _lock(self, guest_id: str) -> asyncio.Lock:
        return self._locks.setdefault(guest_id, asyncio.Lock())
