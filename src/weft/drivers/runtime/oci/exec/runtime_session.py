"""A command beside a container's own process: the runtime's exec, held by the agent. It ends with the agent, as a hung-up
line does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import NEVER_BEGAN
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import find_by_argument, inspect_process, is_alive, read_parent, wait_for_end
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.exec.channel import Channel
from weft.drivers.runtime.oci.exec.channel_session import NOT_STARTED, ChannelSession
from weft.drivers.runtime.oci.exec.terminal import Terminal, open_terminal
from weft.drivers.runtime.oci.mount_namespace import spawn_in_mount_namespace
from weft.drivers.runtime.oci.runtime import read_never_began, shorten_refusal
from weft.drivers.runtime.oci.translate import OciHostFacts, translate_exec

HANG_UPS, HANG_UP_SECONDS = 3, 0.1


class OciSession(ChannelSession):
    """An ExecSession, with CanKill, and CanResize for a terminal."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        marks: Path,
        groups: ControlGroups,
        clock: Clock,
        container_id: str,
        stdin: Channel,
        outputs: dict[str, Channel],
        terminal: Terminal | None = None,
    ) -> None:
        self._process, self._marks, self._container_id = process, marks, container_id
        self._groups, self._clock = groups, clock
        self._resizable = terminal
        self._unbegun = NOT_STARTED
        super().__init__(stdin, outputs, terminal=terminal is not None)

    async def resize(self, rows: int, columns: int) -> None:
        if self._resizable is not None:
            self._resizable.resize(rows, columns)

    async def close(self) -> None:
        _hanging_up.add(hanging_up := asyncio.create_task(self._hang_up()))
        hanging_up.add_done_callback(_hanging_up.discard)

    async def kill(self) -> None:
        while self._process.poll() is None:
            if (pid := self._find_command()) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await self._clock.sleep(HANG_UP_SECONDS)

    async def wait(self) -> int:
        return await _reap(self._process)

    def read_exit(self, code: int) -> int:
        return code if self._has_begun else self._unbegun

    def on_output(self, data: bytes) -> bytes:
        if self._has_begun:
            return data
        words = shorten_refusal(data)
        reason = read_never_began(words.decode(errors="replace"))
        if reason is not None:
            self._unbegun = NEVER_BEGAN[reason]  # counts only if the runtime reported it, before anything began
        return words

    @property
    def _has_begun(self) -> bool:
        return self._marks.with_suffix(".pid").exists()

    async def _hang_up(self) -> None:
        """Send SIGHUP to a command that runs or is about to; more than once, because the process that becomes it may not have
        received the first. Its input is closed after that: a command must not take a lost caller for the end of what it reads."""
        signals_sent = 0
        while self._process.poll() is None and signals_sent < HANG_UPS:
            has_begun, pid = self._has_begun, self._find_command()
            if has_begun and pid is None:
                break  # what it started may still hold its output, and so the runtime
            if pid is not None:
                signals_sent += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
            await self._clock.sleep(HANG_UP_SECONDS)
        await self.let_go()
        await _reap(self._process)
        _drop(self._marks)

    def _find_command(self) -> int | None:
        try:
            pid = int(self._marks.with_suffix(".pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if pid in self._groups.processes(self._container_id) else None


_hanging_up: set[asyncio.Task[None]] = set()


async def start_exec(
    container: Container, facts: OciHostFacts, groups: ControlGroups, clock: Clock, request: ExecRequest
) -> OciSession:
    """Raises InvalidInput, DriverFailed."""
    marks = container.paths.run / f"exec-{secrets.token_hex(4)}"
    try:
        return await _start(container, facts, groups, clock, request, marks)
    except BaseException:
        _drop(marks)
        raise


async def _start(
    container: Container, facts: OciHostFacts, groups: ControlGroups, clock: Clock, request: ExecRequest, marks: Path
) -> OciSession:
    plan, runtime = container.record.plan, container.runtime
    spec = marks.with_suffix(".json")
    with os.fdopen(os.open(spec, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(translate_exec(plan, facts, request)))
    words = runtime.words("exec", "--process", str(spec), "--pid-file", str(marks.with_suffix(".pid")))
    if request.tty:
        terminal = await open_terminal(runtime, words, plan.id, marks, clock, request)
        stdin = terminal.channel or Channel(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
        channels = {"stdout": terminal.channel, "errors": terminal.errors}
        outputs = {name: channel for name, channel in channels.items() if channel is not None}
        return OciSession(terminal.process, marks, groups, clock, plan.id, stdin, outputs, terminal)
    process = await spawn_in_mount_namespace(
        [*words, plan.id],
        runtime.hidden,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    stdin, stdout, stderr = (Channel(os.dup(pipe.fileno())) for pipe in (process.stdin, process.stdout, process.stderr))
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    outputs = {"stdout": stdout, "stderr": stderr}
    return OciSession(process, marks, groups, clock, plan.id, stdin, outputs)


def end_commands(container: Container, groups: ControlGroups, clock: Clock) -> None:
    """Hang up commands that an agent before this one began: nobody waits for them any more."""
    for spec in container.paths.run.glob("exec-*.json"):
        _hanging_up.add(ending := asyncio.create_task(_end_left(container.record.plan.id, spec, groups, clock)))
        ending.add_done_callback(_hanging_up.discard)


async def _end_left(container_id: str, spec: Path, groups: ControlGroups, clock: Clock) -> None:
    """The runtime that began the command has the file among its words, and is its parent for as long as it runs."""
    runtimes = {one.pid: one for one in await asyncio.to_thread(find_by_argument, str(spec))}
    for _ in range(HANG_UPS):
        for pid in groups.processes(container_id):
            if read_parent(pid) in runtimes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP)
        if not any(map(is_alive, runtimes.values())):
            break
        await clock.sleep(HANG_UP_SECONDS)
    for runtime in runtimes.values():
        await wait_for_end(runtime)
    _drop(spec.with_suffix(""))


def _drop(marks: Path) -> None:
    unfinished = marks.with_name(f".{marks.name}.pid")  # of a runc that was ended as it wrote it
    for mark in (marks.with_suffix(".json"), marks.with_suffix(".pid"), unfinished):
        mark.unlink(missing_ok=True)


async def _reap(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None and (found := inspect_process(process.pid)) is not None:
        await wait_for_end(found)
    return process.wait()
