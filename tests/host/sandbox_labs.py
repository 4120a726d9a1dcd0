"""The labs that sandboxes are tested on: containers as their drivers have them, and instances that this process serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from container_lab import ContainerLab
from container_labs import open_lab as open_container_lab
from function_lab import DRIVERS, FunctionLab
from tests.conformance.container_contract import printed, until
from tests.conformance.sandbox_contract import DISK_BYTES, MIB, PROCESSES, End

from weft.contracts.driver.container import ContainerPlan, HasLog
from weft.contracts.driver.function import Instance, Recipe, Roots
from weft.contracts.driver.runtime import GuestFacts
from weft.contracts.driver.sandbox import CanFreeze
from weft.drivers.runtime.qemu.function.clone import Clone

MEMORY_BYTES = 96 * MIB
BOOTSTRAP = """#!/bin/sh
wget -q -O /tmp/script "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next" || exit 99
. /tmp/script
"""


def measure_folder(*folders: str) -> int:
    found = 0
    for top in folders:
        for folder, _, names in os.walk(top):
            for name in names:
                with contextlib.suppress(OSError):
                    found += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return found


def list_members(cgroup: str, name: str) -> set[int]:
    """Processes in the control group of that name, in any tree."""
    found: set[int] = set()
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in files and f"/{cgroup}/" in folder and f"/{name}" in folder:
            with contextlib.suppress(OSError):
                found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return found


def count_cpu(pids: set[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


class RunningContainer:
    def __init__(self, lab: ContainerSandboxes, plan: ContainerPlan, facts: GuestFacts) -> None:
        self._lab, self.plan, self._facts = lab, plan, facts

    async def wait(self) -> End:
        facts = await until(self._lab.driver, self.plan.id, lambda facts: facts.state in ("stopped", "failed"))
        code = facts.exit_code
        if facts.reason == "killed" and code is None:  # its machine was
            return End(None, int(signal.SIGKILL))
        assert code is not None, facts
        return End(None, code - 128, facts.reason == "outOfMemory") if code > 128 else End(code)

    async def freeze(self) -> None:
        await self._lab.driver.freeze(self.plan.id)

    async def resume(self) -> None:
        await self._lab.driver.resume(self.plan.id)

    async def stop(self, grace_seconds: float = 0.0) -> None:
        await self._lab.driver.stop(self.plan.id, grace_seconds=grace_seconds)

    async def printed(self) -> str:
        assert isinstance(self._lab.driver, HasLog)
        return await printed(self._lab.driver, self.plan)

    async def most_memory(self) -> int:
        return int((await self._lab.driver.stats(self.plan.id)).resident_bytes)

    def cpu_seconds(self) -> float:
        return count_cpu(list_members(self._lab.lab.host.cgroup, self.plan.id))

    def kill(self) -> None:
        self._lab.lab.kill(self._facts)


class ContainerSandboxes:
    def __init__(self, lab: ContainerLab) -> None:
        self.lab = lab
        self.driver: Any = lab.driver()
        assert isinstance(self.driver, CanFreeze)

    async def start(self, name: str, text: str) -> RunningContainer:
        more = {"memory_bytes": MEMORY_BYTES} if self.lab.runtime != "microvm" else {}
        plan = self.lab.script(name, text, pids=PROCESSES, disk_bytes=DISK_BYTES, **more)
        before = await self.driver.inspect(plan.id)
        if before.state == "running":  # whatever it is told now
            plan = self.lab.plan(name)
        facts = await self.driver.start(plan)
        return RunningContainer(self, plan, facts)

    async def restart_agent(self) -> list[str]:
        await self.driver.close()
        self.lab.drivers.clear()
        self.driver = self.lab.driver()
        return [facts.name for facts in await self.driver.recover() if facts.state == "running"]

    def measure_kept(self) -> int:
        return measure_folder(self.lab.host.state_dir, self.lab.host.run_dir)

    def leftovers(self) -> list[str]:
        return self.lab.leftovers()

    async def close(self) -> None:
        for facts in await self.driver.recover():
            await self.driver.stop(facts.id, grace_seconds=0)
            await self.driver.remove(facts.id)
        await self.lab.close_drivers()


class RunningInstance:
    """An instance whose Runtime API this process serves: its first call is answered with the script."""

    def __init__(self, lab: InstanceSandboxes, instance: Instance, text: str) -> None:
        self._lab, self._instance, self._text = lab, instance, text
        self._out = b""
        self._end: End | None = None
        self._read_descriptor = os.dup(instance.output)
        self._serving: asyncio.Server | None = None

    async def serve(self) -> None:
        listening = socket.socket(fileno=os.dup(self._instance.runtime_api.fileno()))
        self._serving = await asyncio.start_server(self._answer, sock=listening)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self._text)}\r\nConnection: close\r\n\r\n"
            writer.write((head + self._text).encode())
            await writer.drain()
        writer.close()

    async def wait(self) -> End:
        if self._end is None:
            ended = await self._instance.wait()
            await self.printed()
            code, number = ended.code, ended.signal
            if code is not None and code > 128:
                code, number = None, code - 128
            self._end = End(code, number, ended.out_of_memory)
        return self._end

    async def freeze(self) -> None:
        await self._instance.freeze()

    async def resume(self) -> None:
        await self._instance.resume()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        await self._instance.stop()

    async def printed(self) -> str:
        with contextlib.suppress(BlockingIOError):
            while len(self._out) < MIB and (piece := os.read(self._read_descriptor, 65536)):
                self._out += piece
        return self._out.decode(errors="replace")

    async def most_memory(self) -> int:
        return await self._instance.most_memory()

    def _members(self) -> set[int]:
        if isinstance(self._instance, Clone):
            return {self._instance.pid}
        return list_members(self._lab.lab.host.cgroup, f"{self._lab.prefix}-{self._instance.id}")

    def cpu_seconds(self) -> float:
        return count_cpu(self._members())

    def kill(self) -> None:
        for pid in self._members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.close()
        await self._instance.stop()
        os.close(self._read_descriptor)


class InstanceSandboxes:
    def __init__(self, lab: FunctionLab, recipe: Recipe, roots: Roots) -> None:
        self.lab, self._recipe, self._roots = lab, recipe, roots
        self.prefix = lab.isolation[0]
        self._running: list[RunningInstance] = []
        self._count = 0

    async def start(self, name: str, text: str) -> RunningInstance:
        self._count += 1
        instance = await self.lab.driver.start(f"{name}{self._count}", self._recipe, self._roots)
        running = RunningInstance(self, instance, text)
        self._running.append(running)
        await running.serve()
        return running

    async def restart_agent(self) -> list[str]:
        another = DRIVERS[self.lab.isolation][0](self.lab.host)
        count = len([one for one in self._running if one._end is None])
        assert await another.recover() == count and await another.recover() == 0
        await another.close()
        return []

    def measure_kept(self) -> int:
        return measure_folder(str(self.lab.run_dir), str(self.lab.folder))

    def leftovers(self) -> list[str]:
        place = str(self.lab.run_dir)
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place in line]
        notes = [str(path) for path in (self.lab.run_dir / "functions" / "runtime").glob("*")]
        kept = {"runtime", "probe-oci.json"}
        bundles = [str(path) for path in (self.lab.run_dir / "containers").glob("*") if path.name not in kept]
        return [*mounts, *notes, *bundles, *self.lab.groups()]

    async def close(self) -> None:
        await asyncio.gather(*(running.close() for running in self._running))
        self._running.clear()


@contextlib.asynccontextmanager
async def open_instances(folder: Path, kind: str) -> AsyncIterator[InstanceSandboxes]:
    lab = FunctionLab(folder, DRIVERS[kind][0])
    for known in folder.glob("probe*.json"):
        shutil.copy(known, lab.run_dir)
    await lab.open()
    try:
        recipe = lab.recipe(
            {"bootstrap": BOOTSTRAP}, runtime="provided", digest=f"{kind:0<64}", memory=MEMORY_BYTES, scratch=DISK_BYTES,
            pids=PROCESSES,
        )  # fmt: skip
        yield InstanceSandboxes(lab, recipe, await lab.parts.ensure(recipe, lambda word: None))
    finally:
        await lab.close()
        for known in lab.run_dir.glob("probe*.json"):
            shutil.copy(known, folder)
        shutil.rmtree(lab.run_dir)


__all__ = ["ContainerSandboxes", "InstanceSandboxes", "open_container_lab", "open_instances"]
