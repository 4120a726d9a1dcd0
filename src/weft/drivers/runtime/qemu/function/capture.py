"""Brings a function up once, in a machine of its own, and saves that machine while it holds the runtime's first request."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.function import EgressEndpoint, Recipe
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu.devices.ids import fdset
from weft.drivers.runtime.qemu.function.machine import Qemu, choose_limits, entitle, spawn_qemu
from weft.drivers.runtime.qemu.function.messages import ENDED, INIT_ERROR, READY, WOKEN, decode_end, encode_short
from weft.drivers.runtime.qemu.function.network import PrivateNet, make_net
from weft.drivers.runtime.qemu.function.record import Template
from weft.drivers.runtime.qemu.function.reports import Reports
from weft.drivers.runtime.qemu.function.translate import SnapshotFds, translate_template
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

INIT_SECONDS = 120.0  # an emulated machine takes 4 s to boot when nobody else does anything
SETTLE_SECONDS = 0.1
_STATE_BYTES_PER_SECOND = 1 << 40  # migration to a file is limited to 128 MiB/s otherwise
_TAIL_BYTES = 4096
_MOST_TYPE = 200


class _Progress:
    """A machine's reports while it comes up."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.ready = False
        self.init_error: dict[str, Any] | None = None
        self.end: bytes | None = None

    def take_report(self, kind: bytes, content: bytes) -> None:
        if kind == READY:
            self.ready = True
        elif kind == INIT_ERROR:
            self.init_error = _read_error(content)
        elif kind == ENDED:
            self.end = content
        if self.ready or self.end is not None:
            self.settled.set()


async def capture_machine(
    work: Path,
    template: Template,
    disks: list[Path],
    facts: QemuHostFacts,
    cgroups: ControlGroups,
    clock: Clock,
    prefix: str,
    recipe: Recipe,
    egress_endpoint: EgressEndpoint | None,
) -> None:
    """Write RAM and STATE into ``work``. Raises DriverFailed, with the function's own error as its reason if it has one."""
    net = await make_net(egress_endpoint)
    qemu: Qemu | None = None
    progress = _Progress()
    reports = Reports(net.reports, progress.take_report)
    try:
        qemu = _start(work, template, disks, facts, cgroups, net, f"{prefix}t{template.recipe[-20:]}")
        await qemu.connect()
        await _come_up(qemu, progress, reports, work, recipe)
        reports.hang_up()
        net.wake.send(encode_short(WOKEN, 0))  # it answers once it has noticed that nobody listens any more
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.get_running_loop().sock_recv(net.wake, 256)
        await clock.sleep(SETTLE_SECONDS)
        assert qemu.qmp is not None
        await qemu.qmp.execute("migrate-set-parameters", **{"max-bandwidth": _STATE_BYTES_PER_SECOND})
        state = os.open(work / "STATE", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            number = (await qemu.qmp.execute("add-fd", descriptor=state))["fdset-id"]
        finally:
            os.close(state)
        await qemu.transfer("migrate", uri=f"file:{fdset(number)}")
    finally:
        reports.close()
        if qemu is not None:
            await asyncio.shield(qemu.end(cgroups, clock))
        await asyncio.shield(net.close())


def _start(
    work: Path,
    template: Template,
    disks: list[Path],
    facts: QemuHostFacts,
    cgroups: ControlGroups,
    net: PrivateNet,
    name: str,
) -> Qemu:
    opened = []

    def open_file(path: Path | str, flags: int = os.O_RDONLY) -> int:
        opened.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
        return opened[-1]

    machine = template.machine
    try:
        memory = open_file(work / "RAM", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.ftruncate(memory, machine.memory)
        os.fchmod(memory, 0o666)  # QEMU opens it once more, as whom it is; the folder keeps everyone else out
        nothing, console = open_file(os.devnull), open_file(work / "console", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        kernel, initrd = open_file(template.kernel), open_file(work / "initrd")
        drives = [open_file(disk) for disk in disks]

        def translate(qmp: int) -> list[str]:
            return translate_template(
                machine,
                SnapshotFds(qmp, net.tap, memory, nothing, kernel, initrd, drives, console),
                entitle(name, work.parent),
            )

        return spawn_qemu(
            name, facts, cgroups, choose_limits(machine, max(template.cpu, 1.0)), translate, [net.tap, *opened]
        )
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def _come_up(qemu: Qemu, progress: _Progress, reports: Reports, work: Path, recipe: Recipe) -> None:
    answer, gone = asyncio.create_task(progress.settled.wait()), asyncio.create_task(qemu.ended.wait())
    try:
        await asyncio.wait((answer, gone), timeout=INIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        answer.cancel()
        gone.cancel()
    if progress.ready:
        return
    output = reports.printed()[-_TAIL_BYTES:].decode(errors="replace")
    details = {"step": "init", "output": output}
    if progress.init_error is not None:
        error = progress.init_error
        raise DriverFailed(
            f"{recipe.what}: {str(error.get('errorMessage') or 'its code cannot be loaded')[:_TAIL_BYTES]}",
            reason=str(error.get("errorType") or "Runtime.Unknown")[:_MOST_TYPE],
            details={**details, "error": msgspec.json.encode(error).decode()},
        )
    if progress.end is not None and (end := decode_end(progress.end)) is not None:
        how = f"by signal {end.signal}" if end.signal else f"with exit code {end.code}"
        if end.out_of_memory:
            raise DriverFailed(
                f"{recipe.what}: needs more than its {recipe.memory >> 20} MiB of memory to start",
                reason="Function.OutOfMemory",
                details=details,
            )
        last = output.strip().splitlines()[-1:] or [""]
        raise DriverFailed(
            f"{recipe.what}: its runtime ended {how} before it asked for an invocation: {last[0]}".rstrip(": "),
            reason="Runtime.ExitError",
            details=details,
        )
    if qemu.ended.is_set():
        with contextlib.suppress(OSError):
            console = (work / "console").read_text(errors="replace").strip().splitlines()[-3:]
            details["console"] = " / ".join(console)
        last_words = qemu.last_words() or details.get("console") or "it printed no error"
        full = os.statvfs(work).f_bavail == 0
        raise DriverFailed(
            f"{recipe.what}: the microVM ended while it started: {last_words}",
            reason="noSpace" if full else None,
            details=details,
        )
    raise DriverFailed(
        f"{recipe.what}: not ready for an invocation within {INIT_SECONDS:g} s",
        reason="Function.TimedOut",
        details=details,
    )


def _read_error(content: bytes) -> dict[str, Any]:
    try:
        error = msgspec.json.decode(content)
    except (msgspec.MsgspecError, RecursionError):
        return {"errorType": "Runtime.Unknown", "errorMessage": content[:500].decode(errors="replace")}
    return error if isinstance(error, dict) else {"errorType": "Runtime.Unknown", "errorMessage": str(error)[:500]}
