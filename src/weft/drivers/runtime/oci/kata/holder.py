"""Containers that a runtime of containerd's puts into machines of their own: a Holder over its tasks alone.

Nothing of the container is a process of this node, nor in a control group of it: that it runs, how it ends and what it uses is what
containerd says. The runtime is given the image's layers as they are, with the task, and mounts them itself; volumes as folders; and
a network namespace, whose NICs it hands to the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import Counters, GuestStats
from weft.contracts.driver.sandbox import SIGNAL_OFFSET
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import ProcessId
from weft.drivers.runtime.oci.conmon.shim import read_exit_code, write_exit_code
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.containerd.client import Client
from weft.drivers.runtime.oci.containerd.exec import A_LONG_TIME_SECONDS
from weft.drivers.runtime.oci.containerd.messages import PAUSED, PAUSING, RUNNING, STOPPED, messages
from weft.drivers.runtime.oci.containerd.oom_events import Shortages
from weft.drivers.runtime.oci.containerd.tasks import Tasks, search_shims, write_log_starter
from weft.drivers.runtime.oci.kata.metrics import NOTHING, read_metrics
from weft.drivers.runtime.oci.kata.translate import plan_root, translate_isolated
from weft.drivers.runtime.oci.kata.volumes import mount_volumes, unmount_volumes, volumes_folder
from weft.drivers.runtime.oci.prepare import ENDED_ALREADY, make_ready, write_files
from weft.drivers.runtime.oci.rootfs.writable_layer import ensure_disk
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError

CREATE_SECONDS = 120.0  # a machine boots meanwhile
SHORTAGE_SECONDS = 0.5  # that want of memory killed it may be heard after its end


class Kata(Tasks):
    """A Holder. ``runtime_class`` is containerd's name of the runtime."""

    label = "weft/node-of-machine"

    def __init__(
        self,
        client: Client,
        runtime_class: str,
        shortages: Shortages,
        groups: ControlGroups,
        clock: Clock,
        node_uid: str,
    ) -> None:
        super().__init__(client, clock, node_uid)
        self._class, self._shortages, self._groups = runtime_class, shortages, groups
        self._short_of_memory = False

    async def launch(self, container: Container, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        record, paths, plan = container.record, container.paths, container.record.plan
        volumes = volumes_folder(paths)
        write_files(container)
        (paths.exits / plan.id).unlink(missing_ok=True)
        config = translate_isolated(plan, paths, facts, volumes, cgroup=self._groups.path(plan.id))
        output = write_log_starter(container)
        for number, layer in enumerate(plan.layers):
            name = paths.mounts / str(number)
            name.unlink(missing_ok=True)
            name.symlink_to(layer)
        self._shortages.listen()
        self._shortages.forget(plan.id)
        async with make_ready(container, "containerd"):
            await ensure_disk(plan, paths)
            await recorded
            await self.book(container, config, messages["RuntimeChoice"](name=self._class))
            options = plan_root(len(plan.layers), paths, await asyncio.to_thread(mount_volumes, plan, paths, volumes))
            root = messages["Mount"](type="overlay", source="overlay", options=options)
            made = await self.create(plan.id, within=CREATE_SECONDS, rootfs=[root], stdout=output, stderr=output)
            record.process = ProcessId(made.pid, 0)  # the machine's; reported, never inspected
            record.shim = next(iter(await asyncio.to_thread(search_shims, plan.id)), None)
            await self._client.call("tasks.v1.Tasks/Start", within=CREATE_SECONDS, container_id=plan.id)
        record.started = True

    async def adopt(self, container: Container) -> bool:
        record, plan_id = container.record, container.record.plan.id
        self._shortages.listen()
        try:
            await asyncio.to_thread(
                self._client.find_peer
            )  # fails at once where nothing listens: there may be many to adopt
            task = await self.inspect(plan_id)
        except NotFound:
            return False
        except WeftError:
            return record.started  # nobody can be asked now; the end is waited for
        if task.status in (RUNNING, PAUSED, PAUSING):
            record.process, record.started = record.process or ProcessId(task.pid, 0), True
            await self.end_commands(container)
            return True
        if task.status == STOPPED:
            record.process, record.started = record.process or ENDED_ALREADY, True
        return False

    def has_ended(self, container: Container) -> bool:
        return False  # that is heard

    async def wait_for_end(self, container: Container) -> None:
        while True:
            try:
                await self._client.call(
                    "tasks.v1.Tasks/Wait", within=A_LONG_TIME_SECONDS, container_id=container.record.plan.id
                )
                return
            except NotFound:
                return
            except (Unavailable, DriverFailed):  # a shim that was killed is taken from the books in a moment
                await self._clock.sleep(0.1)

    async def signal(self, container: Container, number: int) -> None:
        try:
            await self._client.call("tasks.v1.Tasks/Kill", container_id=container.record.plan.id, signal=number)
        except NotFound:
            return

    async def freeze(self, container: Container, frozen: bool) -> None:
        with contextlib.suppress(NotFound):
            if ((await self.inspect(container.id)).status in (PAUSED, PAUSING)) is not frozen:
                await self._client.call(f"tasks.v1.Tasks/{'Pause' if frozen else 'Resume'}", container_id=container.id)

    async def exit_code(self, container: Container) -> int | None:
        """Its parts of the node are given back before its end is reported, or its next run would find its volumes in use;
        containerd's part in that is recorded first."""
        if (known := read_exit_code(container.paths, container.record.plan.id)) is not None:
            return known
        code = await super().exit_code(container)
        if code is not None:
            waits = code > SIGNAL_OFFSET and not container.record.stopping
            hears = await self._shortages.is_reported(container.record.plan.id, SHORTAGE_SECONDS if waits else 0.0)
            self._short_of_memory = hears
            write_exit_code(container.paths, container.record.plan.id, code)
            with contextlib.suppress(WeftError):
                await self.release(container)
        return code

    async def ran_out_of_memory(self, container: Container, exit_code: int | None) -> bool:
        return self._short_of_memory

    async def stats(self, container: Container, *, disks: bool) -> GuestStats:
        answer = await self._client.call("tasks.v1.Tasks/Metrics", filters=[f"id=={container.record.plan.id}"])
        return read_metrics(answer.metrics[0].data, disks=disks) if answer.metrics else NOTHING

    def open_counters(self, container: Container) -> list[Counters]:
        """None: what its runtime counts, containerd must be asked for, which is too dear for several times a second."""
        return []

    async def release(self, container: Container) -> None:
        await super().release(container)
        self._shortages.forget(container.record.plan.id)
        try:
            await asyncio.to_thread(unmount_volumes, volumes_folder(container.paths))
        except OSError as problem:
            what = f"{problem.filename}: {problem.strerror}"
            raise DriverFailed(f"container/{container.record.plan.name}: {what}", details={"step": "unmount"}) from None
