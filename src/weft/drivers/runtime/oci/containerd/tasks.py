"""Containers in a containerd's books, whichever of its runtimes runs them: its API records them there, waits for them, signals
them and forgets them.

containerd's shim holds a container, keeps its exit code and outlives containerd, as ``log_writer.py`` beside it does.
containerd's own books are a second record, by which a container is found again whose own was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Protocol

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import ExecRequest, ExecSession
from weft.drivers.linux.processes import ProcessId, inspect_process, kill_process, wait_for_end
from weft.drivers.runtime.oci.conmon.logs import TURN_BYTES
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd import log_writer
from weft.drivers.runtime.oci.containerd.client import NAMESPACE, Client
from weft.drivers.runtime.oci.containerd.exec import MARK, start_exec
from weft.drivers.runtime.oci.containerd.messages import (
    PAUSED,
    PAUSING,
    RECORD,
    RESOURCES,
    RUNNING,
    SPEC,
    STOPPED,
    messages,
)
from weft.drivers.runtime.oci.containerd.shim_access import write_program
from weft.drivers.runtime.oci.holder import Holder
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError

EXIT_SECONDS = 10.0  # for the exit code, of a containerd that is being started again
SHIM_SECONDS = 5.0


class BookHolder(Holder[Container], Protocol):
    async def find_strays(self, known: set[str]) -> list[ContainerRecord]:
        """See Tasks."""


class Tasks:
    """The part of a Holder that uses containerd's books. ``node_uid``: a containerd may serve several nodes. ``label`` is a
    node's name there, so that its drivers never meet each other's containers."""

    label = "weft/node"

    def __init__(self, client: Client, clock: Clock, node_uid: str) -> None:
        self._client, self._clock, self._node_uid = client, clock, node_uid

    @property
    def address(self) -> str:
        return self._client.address

    async def book(self, container: Container, config: dict[str, Any], runtime: Any) -> None:
        """Record it, with its OCI configuration and RuntimeChoice. Raises DriverFailed, Unavailable."""
        record, any_ = container.record, messages["Any"]
        booked = messages["Container"](
            id=record.plan.id,
            labels=[
                messages["LabelEntry"](key=self.label, value=self._node_uid),
                messages["LabelEntry"](key="weft/name", value=record.plan.name),
            ],
            runtime=runtime,
            spec=any_(type_url=SPEC, value=msgspec.json.encode(config)),
            extensions=[
                messages["ExtensionEntry"](key="weft", value=any_(type_url=RECORD, value=msgspec.json.encode(record)))
            ],
        )
        try:
            await self._client.call("containers.v1.Containers/Create", container=booked)
        except DriverFailed as problem:
            if problem.details.get("code") != "ALREADY_EXISTS":
                raise
            await self.release(container)  # of an earlier run whose end it couldn't be sent
            await self._client.call("containers.v1.Containers/Create", container=booked)

    async def create(self, container_id: str, **given: Any) -> Any:
        """Make its task. A task of a run before whose shim was killed stays in the books until containerd has noticed. Raises
        DriverFailed, Unavailable."""
        deadline = self._clock.elapsed() + SHIM_SECONDS
        while True:
            try:
                return await self._client.call("tasks.v1.Tasks/Create", container_id=container_id, **given)
            except DriverFailed as problem:
                if problem.details.get("code") != "ALREADY_EXISTS" or self._clock.elapsed() > deadline:
                    raise
            await self._clock.sleep(0.05)

    async def inspect(self, container_id: str) -> Any:
        """The Process of its task. Raises NotFound, DriverFailed, Unavailable."""
        return (await self._client.call("tasks.v1.Tasks/Get", container_id=container_id)).process

    async def end_commands(self, container: Container) -> None:
        """End commands that nobody waits for any more."""
        for mark in container.paths.run.glob(f"{MARK}*"):
            with contextlib.suppress(WeftError):
                await self._client.call(
                    "tasks.v1.Tasks/Kill",
                    container_id=container.record.plan.id,
                    exec_id=mark.name,
                    signal=signal.SIGHUP,
                )
            shutil.rmtree(mark, ignore_errors=True)

    async def exit_code(self, container: Container) -> int | None:
        if not container.record.started:
            return None  # what was never let go would be waited for in vain
        deadline = self._clock.elapsed() + EXIT_SECONDS
        while (left := deadline - self._clock.elapsed()) > 0:
            try:
                answer = await self._client.call(
                    "tasks.v1.Tasks/Wait", within=left, container_id=container.record.plan.id
                )
                return int(answer.exit_status)
            except Unavailable:
                await self._clock.sleep(0.1)
            except WeftError:
                return None
        return None

    async def release(self, container: Container) -> None:
        plan_id = container.record.plan.id
        await self.forget(plan_id)
        shims = [container.record.shim] if container.record.shim else []
        if not shims and container.record.process is None:  # cut off before that was known
            shims = await asyncio.to_thread(search_shims, plan_id)
        for shim in shims:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHIM_SECONDS):
                    await wait_for_end(shim)
            kill_process(shim)  # of a containerd that has lost its books

    async def forget(self, container_id: str) -> None:
        """Kill its process if it lives, and drop it from containerd's books."""
        with contextlib.suppress(NotFound):
            with contextlib.suppress(DriverFailed):
                if (await self.inspect(container_id)).status in (RUNNING, PAUSED, PAUSING):
                    await self._end(container_id)  # not every runtime minds when one that runs is deleted
            try:
                await self._client.call("tasks.v1.Tasks/Delete", container_id=container_id)
            except DriverFailed:  # it was created, and never started
                await self._end(container_id)
                await self._client.call("tasks.v1.Tasks/Delete", container_id=container_id)
        with contextlib.suppress(NotFound):
            await self._client.call("containers.v1.Containers/Delete", id=container_id)

    async def _end(self, container_id: str) -> None:
        with contextlib.suppress(NotFound, DriverFailed):
            await self._client.call("tasks.v1.Tasks/Kill", container_id=container_id, signal=signal.SIGKILL, all=True)
            await self._client.call("tasks.v1.Tasks/Wait", container_id=container_id)

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        wanted = messages["Any"](type_url=RESOURCES, value=msgspec.json.encode(resources))
        await self._client.call("tasks.v1.Tasks/Update", container_id=container.record.plan.id, resources=wanted)

    async def exec(self, container: Container, facts: OciHostFacts, request: ExecRequest) -> ExecSession:
        return await start_exec(container, facts, self._client, self._clock, request)

    def turn_log(self, container: Container) -> None:
        """``log_writer`` does."""

    async def find_strays(self, known: set[str]) -> list[ContainerRecord]:
        """This node's containers that run here and aren't ``known``, by their second record; those that don't run are dropped
        from the books."""
        answer = await self._client.call(
            "containers.v1.Containers/List", filters=[f'labels."{self.label}"=={self._node_uid}']
        )
        found = []
        for booked in answer.containers:
            if booked.id in known:
                continue
            try:
                task = await self.inspect(booked.id)
                record = msgspec.json.decode(booked.extensions[0].value.value, type=ContainerRecord)
            except (NotFound, IndexError, msgspec.DecodeError):
                task = record = None
            if record is None or task.status == STOPPED:
                await self.forget(booked.id)
            else:
                found.append(record)
        return found


def write_log_starter(container: Container) -> str:
    """Write the program that starts ``log_writer`` for one container, since containerd names such a program by a file's path
    only; returns its path as a URI."""
    record = container.record
    user, first = record.plan.process.user, record.first_user or 0
    words = [sys.executable, "-ISB", log_writer.__file__, str(container.paths.log)]
    words += map(str, (TURN_BYTES, first + user.uid, first + user.gid))
    program = container.paths.run / "keep-log"
    write_program(program, f"exec {shlex.join(words)}\n")
    return f"binary://{program}"


def search_shims(container_id: str) -> list[ProcessId]:
    """Search all processes for the container's shims."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    found = (inspect_process(pid) for pid in pids if is_shim(pid, container_id))
    return [process for process in found if process is not None]


def is_shim(pid: int, container_id: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return NAMESPACE in words and container_id in words and "containerd-shim" in words[0]
