"""A command beside a container's own process, as containerd runs it: through fifos that its shim and this process have open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import NEVER_BEGAN
from weft.contracts.driver.runtime import ExecChunk, ExecRequest
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.messages import PROCESS, messages
from weft.drivers.runtime.oci.exec.channel import Channel
from weft.drivers.runtime.oci.exec.channel_session import NOT_STARTED, ChannelSession
from weft.drivers.runtime.oci.runtime import read_never_began
from weft.drivers.runtime.oci.translate import OciHostFacts, translate_exec
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError

MARK = "exec-"  # how the folders of their fifos are named, and they themselves in containerd
A_LONG_TIME_SECONDS = 7 * 86_400.0
# The shim itself ends what comes by a terminal once the command has: on a busy machine later than others are waited for.
TERMINAL_SECONDS = 5.0
TRIES = 3
_LOST = "fail startup"  # crun's words: what it had forked was gone before it became the command


class ContainerdSession(ChannelSession):
    """An ExecSession, with CanKill, and CanResize for a terminal."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        container_id: str,
        folder: Path,
        stdin: Channel,
        outputs: dict[str, Channel],
        *,
        terminal: bool,
    ) -> None:
        self._client, self._clock, self._folder = client, clock, folder
        self._name: dict[str, Any] = {"container_id": container_id, "exec_id": folder.name}
        self._ended = asyncio.Event()
        if terminal:
            self.linger_seconds = TERMINAL_SECONDS
        super().__init__(stdin, outputs, terminal=terminal)

    async def close_stdin(self) -> None:
        await super().close_stdin()
        if not self._terminal:
            with contextlib.suppress(NotFound, DriverFailed):  # it has ended meanwhile
                await self._client.call("tasks.v1.Tasks/CloseIO", **self._name, stdin=True)

    async def resize(self, rows: int, columns: int) -> None:
        if self._terminal:
            with contextlib.suppress(NotFound, DriverFailed):
                await self._client.call("tasks.v1.Tasks/ResizePty", **self._name, width=columns, height=rows)

    async def close(self) -> None:
        """Waits until the end is requested, not for the end itself."""
        if not self._ended.is_set():
            # First, since a command must not take a lost caller for the end of what it reads.
            await self._kill(signal.SIGHUP)
        await self.let_go()
        _clearing.add(clearing := asyncio.create_task(self._forget()))
        clearing.add_done_callback(_clearing.discard)

    async def kill(self) -> None:
        if not self._ended.is_set():
            await self._kill(signal.SIGKILL)
            with contextlib.suppress(WeftError):
                await self._client.call("tasks.v1.Tasks/Wait", **self._name)

    async def wait(self) -> int:
        """A containerd that was killed meanwhile is waited for, since its shim still has the exit code."""
        while True:
            try:
                answer = await self._client.call("tasks.v1.Tasks/Wait", within=A_LONG_TIME_SECONDS, **self._name)
                code = int(answer.exit_status)
            except Unavailable:
                await self._clock.sleep(0.1)
                continue
            except WeftError:
                code = 128 + signal.SIGKILL  # its container ended, and it went along
            self._ended.set()
            return code

    async def _kill(self, number: int) -> None:
        with contextlib.suppress(WeftError):
            await self._client.call("tasks.v1.Tasks/Kill", **self._name, signal=number)

    async def _forget(self) -> None:
        with contextlib.suppress(WeftError):
            await self._client.call("tasks.v1.Tasks/Wait", within=A_LONG_TIME_SECONDS, **self._name)
            await self._client.call("tasks.v1.Tasks/DeleteProcess", **self._name)
        shutil.rmtree(self._folder, ignore_errors=True)


_clearing: set[asyncio.Task[None]] = set()


class RefusedExecSession:
    """An ExecSession of a command that never began: it gives the reason, and ends."""

    def __init__(self, words: str) -> None:
        self.lost = _LOST in words
        self._words = words
        if self.lost:
            self._words += ": the command had not started; try again, and check whether the container's memory is full"

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def close(self) -> None: ...

    async def output(self) -> AsyncIterator[ExecChunk]:
        yield ExecChunk("stderr", f"{self._words}\n".encode())
        reason = read_never_began(self._words)
        yield ExecChunk("exit", code=NOT_STARTED if reason is None else NEVER_BEGAN[reason])


async def start_exec(
    container: Container, facts: OciHostFacts, client: Client, clock: Clock, request: ExecRequest
) -> ContainerdSession | RefusedExecSession:
    """Start it; a command that is lost before it begins is begun again, a few times. Raises InvalidInput, DriverFailed,
    Unavailable."""
    for _ in range(TRIES):
        session = await _begin(container, facts, client, clock, request)
        if isinstance(session, ContainerdSession) or not session.lost:
            break
    return session


async def _begin(
    container: Container, facts: OciHostFacts, client: Client, clock: Clock, request: ExecRequest
) -> ContainerdSession | RefusedExecSession:
    plan_id = container.record.plan.id
    process = translate_exec(container.record.plan, facts, request)
    folder = container.paths.run / f"{MARK}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    places = {name: folder / name for name in (("stdin", "stdout") if request.tty else ("stdin", "stdout", "stderr"))}
    outputs: dict[str, Channel] = {}
    stdin = None
    try:
        for name, place in places.items():
            os.mkfifo(place, 0o600)
            if name != "stdin":
                outputs[name] = Channel(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        await client.call(
            "tasks.v1.Tasks/Exec",
            container_id=plan_id,
            exec_id=folder.name,
            terminal=request.tty,
            spec=messages["Any"](type_url=PROCESS, value=msgspec.json.encode(process)),
            **dict[str, Any]({name: str(place) for name, place in places.items()}),
        )
        # open for both: there is somebody to write to before the shim has it open, and after the command has ended
        stdin = Channel(os.open(places["stdin"], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        await client.call("tasks.v1.Tasks/Start", container_id=plan_id, exec_id=folder.name)
    except BaseException as problem:
        for channel in (*outputs.values(), *([stdin] if stdin else [])):
            channel.close()
        with contextlib.suppress(WeftError):
            await client.call("tasks.v1.Tasks/DeleteProcess", container_id=plan_id, exec_id=folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(problem, DriverFailed | NotFound) and container.running:
            return RefusedExecSession(problem.message)
        raise
    return ContainerdSession(client, clock, plan_id, folder, stdin, outputs, terminal=request.tty)
