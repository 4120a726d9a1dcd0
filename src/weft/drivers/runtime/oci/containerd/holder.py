"""Containers held by the node's containerd: a Holder over its containers and tasks.

Their root, users, network and limits are what ``oci/`` makes them; containerd's shim holds the process, keeps its exit code and
outlives containerd, as ``keep_log.py`` beside it does. What stands in containerd's own books is a second record, by which a
container is found again whose own was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.runtime import ExecRequest, ExecSession
from weft.drivers.processes import ProcessId, inspect_process, is_alive, kill_process, read_parent, wait_for_end
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd import keep_log
from weft.drivers.runtime.oci.containerd.client import NAMESPACE, Client
from weft.drivers.runtime.oci.containerd.exec import MARK, start_exec
from weft.drivers.runtime.oci.containerd.standing import stand_in_mounts, write_entrance, write_program
from weft.drivers.runtime.oci.containerd.wire import (
    PAUSED,
    PAUSING,
    RECORD,
    RESOURCES,
    RUNC_OPTIONS,
    RUNNING,
    SPEC,
    STOPPED,
    messages,
)
from weft.drivers.runtime.oci.groups import SHIMS, Groups
from weft.drivers.runtime.oci.launch import ENDED_ALREADY, make_ready, prepare_config
from weft.drivers.runtime.oci.logs import TURN_BYTES
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.root import Root, mount_root
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import Facts
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError

CLASS = "io.containerd.runc.v2"
NODE_LABEL = "weft/node"
EXIT_SECONDS = 10.0  # for the exit code, of a containerd that is being started again
SHIM_SECONDS = 5.0


class Containerd:
    """A Holder. ``node_uid``: a containerd may serve several nodes."""

    def __init__(self, client: Client, runtime: Runtime, groups: Groups, clock: Clock, node_uid: str) -> None:
        self._client, self._runtime, self._groups, self._clock = client, runtime, groups, clock
        self._node_uid = node_uid

    @property
    def address(self) -> str:
        return self._client.address

    async def launch(self, container: Container, facts: Facts, recorded: Awaitable[None]) -> None:
        record, paths, plan = container.record, container.paths, container.record.plan
        config = prepare_config(container, facts, self._groups)
        options = messages["RuncOptions"](binary_name=str(_entrance(container)))
        if self._groups.make_shims():
            options.shim_cgroup = f"/{self._groups.path(SHIMS)}"
        _write_keeper(container)
        async with make_ready(container, "containerd") as mapping:
            await recorded
            await self._book(container, config, options)
            root = Root(plan, paths, record.first_user, mapping)
            async with stand_in_mounts(self._runtime.hidden, lambda: mount_root(root)) as place:
                runtime = [self._runtime.program, *self._runtime.own_options]
                write_entrance(_entrance(container), runtime, self._runtime.hidden, place)
                output = f"binary://{_keeper(container)}"
                made = await self._client.call(
                    "tasks.v1.Tasks/Create", container_id=plan.id, stdout=output, stderr=output
                )
            record.process = inspect_process(made.pid) if made.pid in self._groups.processes(plan.id) else None
            record.process = record.process or ENDED_ALREADY
            record.shim = _find_shim(record)
            await self._client.call("tasks.v1.Tasks/Start", container_id=plan.id)
        record.started = True

    async def _book(self, container: Container, config: dict[str, Any], options: Any) -> None:
        record, any_ = container.record, messages["Any"]
        booked = messages["Container"](
            id=record.plan.id,
            labels=[
                messages["LabelEntry"](key=NODE_LABEL, value=self._node_uid),
                messages["LabelEntry"](key="weft/name", value=record.plan.name),
            ],
            runtime=messages["RuntimeChoice"](
                name=CLASS, options=any_(type_url=RUNC_OPTIONS, value=options.SerializeToString())
            ),
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
            await self.release(container)  # of a run before, whose end couldn't be told to it
            await self._client.call("containers.v1.Containers/Create", container=booked)

    async def adopt(self, container: Container) -> None:
        record, plan_id = container.record, container.record.plan.id
        if record.process is None or not record.started:
            try:
                task = (await self._client.call("tasks.v1.Tasks/Get", container_id=plan_id)).process
            except WeftError:
                return
            if task.status in (RUNNING, PAUSED, PAUSING) and task.pid in self._groups.processes(plan_id):
                record.process, record.started = inspect_process(task.pid), True
                record.shim = _find_shim(record)
            elif task.status == STOPPED:
                record.process, record.started = record.process or ENDED_ALREADY, True
        for mark in container.paths.run.glob(f"{MARK}*"):  # of commands that nobody waits for any more
            with contextlib.suppress(WeftError):
                await self._client.call(
                    "tasks.v1.Tasks/Kill", container_id=plan_id, exec_id=mark.name, signal=signal.SIGHUP
                )
            shutil.rmtree(mark, ignore_errors=True)

    async def exit_code(self, container: Container) -> int | None:
        deadline = self._clock.elapsed() + EXIT_SECONDS
        while (left := deadline - self._clock.elapsed()) > 0:
            try:
                told = await self._client.call(
                    "tasks.v1.Tasks/Wait", within=left, container_id=container.record.plan.id
                )
                return int(told.exit_status)
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
                await asyncio.wait_for(wait_for_end(shim), SHIM_SECONDS)
            kill_process(shim)  # of a containerd that has lost its books

    async def forget(self, container_id: str) -> None:
        """Its process is killed if it lives, and containerd knows nothing of it."""
        try:
            await self._client.call("tasks.v1.Tasks/Delete", container_id=container_id)
        except NotFound:
            pass
        except DriverFailed:  # it runs
            with contextlib.suppress(NotFound, DriverFailed):
                await self._client.call(
                    "tasks.v1.Tasks/Kill", container_id=container_id, signal=signal.SIGKILL, all=True
                )
                await self._client.call("tasks.v1.Tasks/Wait", container_id=container_id)
            with contextlib.suppress(NotFound):
                await self._client.call("tasks.v1.Tasks/Delete", container_id=container_id)
        with contextlib.suppress(NotFound):
            await self._client.call("containers.v1.Containers/Delete", id=container_id)

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        wanted = messages["Any"](type_url=RESOURCES, value=msgspec.json.encode(resources))
        await self._client.call("tasks.v1.Tasks/Update", container_id=container.record.plan.id, resources=wanted)

    async def exec(self, container: Container, facts: Facts, request: ExecRequest) -> ExecSession:
        return await start_exec(container, facts, self._client, self._clock, request)

    def turn_log(self, container: Container) -> None:
        """``keep_log`` does."""

    async def find_strays(self, known: set[str]) -> list[ContainerRecord]:
        """What runs here of this node's and isn't ``known``, by its second record; what doesn't run is taken from the books."""
        told = await self._client.call(
            "containers.v1.Containers/List", filters=[f'labels."{NODE_LABEL}"=={self._node_uid}']
        )
        found = []
        for booked in told.containers:
            if booked.id in known:
                continue
            try:
                task = (await self._client.call("tasks.v1.Tasks/Get", container_id=booked.id)).process
                record = msgspec.json.decode(booked.extensions[0].value.value, type=ContainerRecord)
            except (NotFound, IndexError, msgspec.DecodeError):
                task = record = None
            if record is None or task.status == STOPPED:
                await self.forget(booked.id)
            else:
                found.append(record)
        return found


def _entrance(container: Container) -> Path:
    return container.paths.run / "runtime"


def _keeper(container: Container) -> Path:
    return container.paths.run / "keep-log"


def _write_keeper(container: Container) -> None:
    record = container.record
    user, first = record.plan.process.user, record.first_user or 0
    words = [sys.executable, "-ISB", keep_log.__file__, str(container.paths.log)]
    words += map(str, (TURN_BYTES, first + user.uid, first + user.gid))
    write_program(_keeper(container), f"exec {shlex.join(words)}\n")


def _find_shim(record: ContainerRecord) -> ProcessId | None:
    """Whoever holds a container's first process is its parent."""
    parent = read_parent(record.process.pid) if record.process is not None and is_alive(record.process) else None
    return inspect_process(parent) if parent is not None and _is_shim(parent, record.plan.id) else None


def search_shims(container_id: str) -> list[ProcessId]:
    """By a search of all processes."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    found = (inspect_process(pid) for pid in pids if _is_shim(pid, container_id))
    return [process for process in found if process is not None]


def _is_shim(pid: int, container_id: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return NAMESPACE in words and container_id in words and "containerd-shim" in words[0]
