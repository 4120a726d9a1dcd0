"""Base of all holders whose containers are processes of this node: they watch and signal them through the kernel, and read their
control groups."""

from __future__ import annotations

import contextlib
import os
import signal

from weft.contracts.driver.runtime import Counters, GuestStats
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import inspect_process, is_alive, wait_for_end
from weft.drivers.runtime.oci.container import Container


class NodeProcess:
    """The part of a Holder that works with a container's first process."""

    def __init__(self, groups: ControlGroups) -> None:
        self._groups = groups

    def runs(self, container: Container) -> bool:
        record = container.record
        return record.started and record.process is not None and is_alive(record.process)

    def has_ended(self, container: Container) -> bool:
        process = container.record.process
        return process is not None and not is_alive(process)

    async def wait_for_end(self, container: Container) -> None:
        process = container.record.process
        if process is not None and is_alive(process):
            await wait_for_end(process)

    async def signal(self, container: Container, number: int) -> None:
        process = container.record.process
        if process is None or not is_alive(process):
            return
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return
        try:
            if inspect_process(process.pid) == process:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)

    async def freeze(self, container: Container, frozen: bool) -> None:
        self._groups.freeze(container.id, frozen)

    async def ran_out_of_memory(self, container: Container, exit_code: int | None) -> bool:
        return self._groups.out_of_memory_kills(container.record.plan.id) > 0

    def open_counters(self, container: Container) -> list[Counters]:
        return [self._groups.open(container.record.plan.id)]

    async def stats(self, container: Container, *, disks: bool) -> GuestStats:
        return self._groups.stats(container.record.plan.id, disks=disks)
