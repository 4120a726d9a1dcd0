"""Containers held by conmon, one process for each: a Holder over the runtime's own commands."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Awaitable, Collection
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import ExecRequest, ExecSession
from weft.drivers.cgroup.groups import ControlGroups, make_shims
from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread
from weft.drivers.linux.processes import is_alive, kill_process, wait_for_end
from weft.drivers.runtime.oci.checkpoint.criu import (
    RESTORE_LOG,
    configure_criu,
    prepare_resuming,
    read_log,
    save_in_mounts,
)
from weft.drivers.runtime.oci.conmon.logs import turn_over
from weft.drivers.runtime.oci.conmon.shim import (
    find_first_process,
    find_shim,
    plan_shim,
    read_exit_code,
    reopen_log,
    run_shim,
    search_starters,
    shorten_complaints,
)
from weft.drivers.runtime.oci.container import Container
from weft.drivers.runtime.oci.exec.runtime_session import end_commands, start_exec
from weft.drivers.runtime.oci.prepare import ENDED_ALREADY, failed, make_ready, prepare_config, write_config
from weft.drivers.runtime.oci.process_holder import NodeProcess
from weft.drivers.runtime.oci.rootfs.overlay import Root, mount_root
from weft.drivers.runtime.oci.rootfs.writable_layer import ensure_disk
from weft.drivers.runtime.oci.runtime import ANSWER_SECONDS, Runtime, read_error
from weft.drivers.runtime.oci.translate import OciHostFacts
from weft.objects.errors import DriverFailed

SHIM_SECONDS = 5.0  # from a container's end to its exit file
STARTERS_SECONDS = 10.0
RUNTIME_STARTED = ("running", "paused")


class Conmon(NodeProcess):
    """A Holder that Saves."""

    def __init__(self, runtime: Runtime, groups: ControlGroups, clock: Clock) -> None:
        super().__init__(groups)
        self._runtime, self._clock = runtime, clock

    async def launch(self, container: Container, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        await self._run(container, facts, recorded, resumes=False)

    async def resume(self, container: Container, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        await self._run(container, facts, recorded, resumes=True)

    async def _run(
        self, container: Container, facts: OciHostFacts, recorded: Awaitable[None], *, resumes: bool
    ) -> None:
        record, paths = container.record, container.paths
        shims = [str(path) for path in make_shims(self._groups)]
        async with make_ready(container, self._runtime.name) as mapping:
            write_config(paths, prepare_config(container, facts, self._groups, mapping))
            await ensure_disk(record.plan, paths)
            await recorded
            root = Root(record.plan, paths, record.first_user, mapping)
            try:
                await run_in_own_thread(lambda: self._create_and_start(container, root, shims, resumes))
            except subprocess.TimeoutExpired:
                what = f"{self._runtime.name} didn't start it within {ANSWER_SECONDS:.0f} s"
                raise failed(container, what) from None
        record.process = find_first_process(paths, self._groups.processes(record.plan.id)) or ENDED_ALREADY
        record.shim = find_shim(paths)
        record.started = True

    async def save(self, container: Container) -> None:
        record, paths = container.record, container.paths
        shim = record.shim or find_shim(paths)
        if shim is None:
            raise DriverFailed("its conmon process is gone", details={"step": "save"})
        await run_in_own_thread(lambda: save_in_mounts(record.plan, paths, self._runtime, shim))

    def _create_and_start(self, container: Container, root: Root, shims: Collection[str], resumes: bool) -> None:
        """Create and start the container, in a thread of its own."""
        runtime, paths, plan = self._runtime, container.paths, container.record.plan
        leave_mounts(runtime.hidden)
        mount_root(root)
        if resumes:
            prepare_resuming(plan, paths)
        try:
            environment = configure_criu(paths, self._groups.path(plan.id)) if resumes else None
            words = plan_shim(plan, paths, runtime, shims, resumes=resumes)
            run_shim(words, paths.shim_log, self._clock, environment)
        except DriverFailed as problem:
            problem.message = (resumes and read_log(paths.run / RESTORE_LOG)) or problem.message
            raise
        if resumes:
            return  # it runs
        done = subprocess.run(
            runtime.words("start", plan.id), stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_SECONDS, check=False
        )  # fmt: skip
        if done.returncode != 0:
            raise DriverFailed(read_error(done.stderr.decode(errors="replace")), details={"step": "start"})

    async def adopt(self, container: Container) -> bool:
        record, paths = container.record, container.paths
        if record.process is None:
            record.process = find_first_process(paths, self._groups.processes(record.plan.id))
        if record.process is not None and is_alive(record.process):
            record.shim = record.shim or find_shim(paths)
            if not record.started:
                record.started = await self._runtime.status(record.plan.id) in RUNTIME_STARTED
        elif record.process is not None and read_exit_code(paths, record.plan.id) is not None:
            record.started = True  # it ran, however shortly
        end_commands(container, self._groups, self._clock)
        return self.runs(container)

    async def exit_code(self, container: Container) -> int | None:
        record, paths = container.record, container.paths
        shim = record.shim or find_shim(paths)
        if shim is not None and record.started:
            with contextlib.suppress(TimeoutError):  # it writes down the exit code, then it ends
                async with asyncio.timeout(SHIM_SECONDS):
                    await wait_for_end(shim)
        return read_exit_code(paths, record.plan.id)

    async def release(self, container: Container) -> None:
        deadline = self._clock.elapsed() + STARTERS_SECONDS
        while (found := await asyncio.to_thread(search_starters, container.paths)) and self._clock.elapsed() < deadline:
            for process in found:
                kill_process(process)
            for process in found:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await wait_for_end(process)
        await self._runtime.delete(container.record.plan.id)

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        await self._runtime.update(container.record.plan.id, resources)

    async def exec(self, container: Container, facts: OciHostFacts, request: ExecRequest) -> ExecSession:
        return await start_exec(container, facts, self._groups, self._clock, request)

    def turn_log(self, container: Container) -> None:
        with contextlib.suppress(FileNotFoundError):
            shorten_complaints(container.paths.shim_log)
        turn_over(container.paths.log, lambda: reopen_log(container.paths))
