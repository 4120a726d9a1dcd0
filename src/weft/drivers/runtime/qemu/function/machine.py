"""One confined QEMU of a template or a clone: started with inherited files, driven through its monitor, ended whole.

It is this process's child and is of no use without it; one that outlives it is found by its name and ended by the next
(``end_leftovers``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits, limit_guest
from weft.drivers.linux.processes import ProcessId, inspect_process, kill_process, list_arguments, wait_for_end
from weft.drivers.linux.syscalls import small_pages
from weft.drivers.runtime.qemu.command_line import TRANSLATION_CACHE_MIB
from weft.drivers.runtime.qemu.function.translate import TemplateMachine
from weft.drivers.runtime.qemu.process.confinement import OPEN_FILES, choose_user, plan_confined
from weft.drivers.runtime.qemu.qmp import Qmp, QmpEvent, connect_qmp
from weft.drivers.runtime.qemu.start import CPU_HEADROOM, MEMORY_HEADROOM_BYTES
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed, Unavailable

START_SECONDS = 30.0
TRANSFER_SECONDS = 60.0


class Qemu:
    """``ended`` is set when the process is gone."""

    def __init__(
        self, process: subprocess.Popen[bytes], group: str, procs: list[Path], monitor: socket.socket, output: int
    ) -> None:
        self._process = process
        self._group = group
        self._monitor = monitor
        self._output = output
        self.qmp: Qmp | None = None
        self.ended = asyncio.Event()
        self._entering = asyncio.create_task(asyncio.to_thread(_enter, process.pid, procs))
        self._watching = asyncio.create_task(self._watch())
        self._moved: asyncio.Future[str] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def _watch(self) -> None:
        process = inspect_process(self._process.pid)
        if process is not None:
            await wait_for_end(process)
        self._process.wait()
        self.ended.set()
        if self._moved is not None and not self._moved.done():
            self._moved.set_result("ended")

    async def connect(self) -> Qmp:
        """Wait until it answers, within its limits. Raises DriverFailed with QEMU's own error."""
        try:
            await self._entering
            self.qmp = await connect_qmp(self._monitor, timeout_seconds=START_SECONDS)
        except (Unavailable, OSError) as problem:
            raise DriverFailed(
                f"QEMU doesn't start: {self.last_words() or problem}", details={"step": "launch"}
            ) from None
        self.qmp.listen(self._take_event)
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        await self.qmp.execute("migrate-set-capabilities", capabilities=capabilities)
        return self.qmp

    async def transfer(self, command: str, **arguments: Any) -> None:
        """``migrate`` or ``migrate-incoming``, to its end. Raises DriverFailed."""
        assert self.qmp is not None
        self._moved = asyncio.get_running_loop().create_future()
        try:
            await self.qmp.execute(command, **arguments)
            async with asyncio.timeout(TRANSFER_SECONDS):
                status = await asyncio.shield(self._moved)
        except (Unavailable, TimeoutError) as problem:
            raise DriverFailed(
                f"QEMU: {command}: {self.last_words() or problem or 'time-out'}", details={"step": command}
            ) from None
        if status != "completed":
            raise DriverFailed(f"QEMU: {command} {status}: {self.last_words()}", details={"step": command})

    def _take_event(self, event: QmpEvent) -> None:
        status = event.data.get("status") if event.name == "MIGRATION" else None
        if status in ("completed", "failed") and self._moved is not None and not self._moved.done():
            self._moved.set_result(str(status))

    def kill(self) -> None:
        if not self.ended.is_set():
            self._process.kill()

    async def end(self, cgroups: ControlGroups, clock: Clock) -> None:
        """Neither process nor group is left. May be repeated."""
        self.kill()
        await self.ended.wait()
        with contextlib.suppress(OSError):
            await self._entering
        if self.qmp is not None:
            self.qmp.close()
        self._monitor.close()
        if self._output >= 0:
            os.close(self._output)
            self._output = -1
        await cgroups.remove_when_empty(self._group, clock)

    def last_words(self) -> str:
        """QEMU's standard error, but for warnings."""
        if self._output < 0:
            return ""
        size = os.fstat(self._output).st_size
        lines = os.pread(self._output, 4096, max(0, size - 4096)).decode(errors="replace").splitlines()
        output = [
            line
            for line in lines
            if "warning:" not in line and not re.search(r"^No config space|read current time", line)
        ]
        return " ".join(output)[-500:]


def spawn_qemu(
    name: str,
    facts: QemuHostFacts,
    cgroups: ControlGroups,
    limits: Limits,
    translate: Callable[[int], list[str]],
    descriptors: list[int],
) -> Qemu:
    """Start it as a user of its own, in a group of its own. ``translate`` gets the monitor's descriptor. Raises DriverFailed."""
    user = choose_user(name, facts.users)
    procs = cgroups.create_if_possible(name, limits)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    output = os.memfd_create("weft-qemu", os.MFD_CLOEXEC)
    try:
        ours.setblocking(False)
        words = plan_confined(
            translate(theirs.fileno()), user, groups=[], kvm_group=facts.kvm_group, open_files=OPEN_FILES
        )
        with small_pages():  # translated code takes 3 MB less of each copy, and no more time
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(theirs.fileno(), *descriptors),
                start_new_session=True,
            )  # fmt: skip
    except OSError as problem:
        ours.close()
        os.close(output)
        cgroups.remove(name)
        raise DriverFailed(f"QEMU can't be started: {problem}", details={"step": "launch"}) from problem
    finally:
        theirs.close()
    return Qemu(process, name, procs, ours, output)


def entitle(name: str, folder: Path) -> str:
    """QEMU's name on its command line: with the folder that it belongs to, which stands nowhere else there."""
    return f"{name} {folder}".replace(",", ",,")


def _enter(pid: int, procs: list[Path]) -> None:
    """Put the process into its groups. Each takes the kernel milliseconds, in which QEMU comes up: it loads the guest's memory
    later, on command. Raises OSError."""
    for path in procs:
        try:
            path.write_text(str(pid))
        except ProcessLookupError:
            return


def choose_limits(machine: TemplateMachine, cpu: float) -> Limits:
    memory = (
        machine.memory + MEMORY_HEADROOM_BYTES + ((TRANSLATION_CACHE_MIB << 20) if machine.accelerator == "tcg" else 0)
    )
    return limit_guest(max(cpu, 0.1) * CPU_HEADROOM, memory)


async def end_leftovers(prefix: str, cgroups: ControlGroups, clock: Clock) -> int:
    """End every QEMU whose name begins with ``prefix``: another process of ours left it; how many there were."""
    found = await asyncio.to_thread(_find_named, prefix)
    for process in found.values():
        kill_process(process)
    for name, process in found.items():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await wait_for_end(process)
        await cgroups.remove_when_empty(name, clock)
    return len(found)


def _find_named(prefix: str) -> dict[str, ProcessId]:
    """The processes whose ``-name`` begins so, by it."""
    found = {}
    for pid, words in list_arguments():
        name = words[words.index("-name") + 1].split(" ")[0] if "-name" in words[:-1] else ""
        if name.startswith(prefix) and (process := inspect_process(pid)) is not None:
            found[name] = process
    return found
