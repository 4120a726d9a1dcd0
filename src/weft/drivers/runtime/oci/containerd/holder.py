"""Containers held by the node's containerd that are processes of the node: a Holder over its tasks.

Their root, users, network and limits are what ``oci/`` makes them.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import SHIMS, ControlGroups, make_shims
from weft.drivers.linux.processes import ProcessId, inspect_process, is_alive, read_parent
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.messages import PAUSED, PAUSING, RUNC_OPTIONS, RUNNING, STOPPED, messages
from weft.drivers.runtime.oci.containerd.shim_access import stand_in_mounts, write_entrance
from weft.drivers.runtime.oci.containerd.tasks import Tasks, is_shim, write_log_starter
from weft.drivers.runtime.oci.prepare import ENDED_ALREADY, make_ready, prepare_config
from weft.drivers.runtime.oci.process_holder import NodeProcess
from weft.drivers.runtime.oci.record import ContainerRecord
from weft.drivers.runtime.oci.rootfs.overlay import Root, mount_root
from weft.drivers.runtime.oci.rootfs.writable_layer import ensure_disk
from weft.drivers.runtime.oci.runtime import Runtime
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.objects.errors import WeftError

CLASS = "io.containerd.runc.v2"


class Containerd(NodeProcess, Tasks):
    """A Holder."""

    def __init__(self, client: Client, runtime: Runtime, groups: ControlGroups, clock: Clock, node_uid: str) -> None:
        NodeProcess.__init__(self, groups)
        Tasks.__init__(self, client, clock, node_uid)
        self._runtime = runtime

    async def launch(self, container: Container, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        record, paths, plan = container.record, container.paths, container.record.plan
        options = messages["RuncOptions"](binary_name=str(_entrance(container)))
        if make_shims(self._groups):
            options.shim_cgroup = f"/{self._groups.path(SHIMS)}"
        packed_options = messages["Any"](type_url=RUNC_OPTIONS, value=options.SerializeToString())
        async with make_ready(container, "containerd") as mapping:
            config = prepare_config(container, facts, self._groups, mapping)
            output = write_log_starter(container)
            await ensure_disk(plan, paths)
            await recorded
            await self.book(container, config, messages["RuntimeChoice"](name=CLASS, options=packed_options))
            root = Root(plan, paths, record.first_user, mapping)
            async with stand_in_mounts(self._runtime.hidden, lambda: mount_root(root)) as place:
                runtime = [self._runtime.program, *self._runtime.own_options]
                write_entrance(_entrance(container), runtime, self._runtime.hidden, place)
                made = await self.create(plan.id, stdout=output, stderr=output)
            record.process = inspect_process(made.pid) if made.pid in self._groups.processes(plan.id) else None
            record.process = record.process or ENDED_ALREADY
            record.shim = _find_shim(record)
            await self._client.call("tasks.v1.Tasks/Start", container_id=plan.id)
        record.started = True

    async def adopt(self, container: Container) -> bool:
        record, plan_id = container.record, container.record.plan.id
        if record.process is None or not record.started:
            try:
                task = await self.inspect(plan_id)
            except WeftError:
                return False
            if task.status in (RUNNING, PAUSED, PAUSING) and task.pid in self._groups.processes(plan_id):
                record.process, record.started = inspect_process(task.pid), True
                record.shim = _find_shim(record)
            elif task.status == STOPPED:
                record.process, record.started = record.process or ENDED_ALREADY, True
        await self.end_commands(container)
        return self.runs(container)


def _entrance(container: Container) -> Path:
    return container.paths.run / "runtime"


def _find_shim(record: ContainerRecord) -> ProcessId | None:
    """A container's first process is a child of its shim."""
    parent = read_parent(record.process.pid) if record.process is not None and is_alive(record.process) else None
    return inspect_process(parent) if parent is not None and is_shim(parent, record.plan.id) else None
