"""One instance that is a process of this node in a control group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.contracts.driver.sandbox import Ended, read_exit
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.namespace_thread import run_in_own_thread

ROUND_SECONDS, PATIENT_ROUNDS = 0.2, 25


class Started:
    """An Instance. ``group`` is its control group's name; ``let_go`` is called once nothing of it is left."""

    def __init__(
        self,
        id: str,
        group: str,
        process: subprocess.Popen[bytes],
        runtime_api: socket.socket,
        output: int,
        groups: ControlGroups,
        clock: Clock,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        self.id, self.runtime_api, self.output = id, runtime_api, output
        self._group, self._process, self._groups, self._clock = group, process, groups, clock
        self._ended = asyncio.get_running_loop().create_future()
        self._let_go = let_go
        self._stopped = False
        self._most_memory = 0
        self._descriptor: int | None = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_end)

    async def wait(self) -> Ended:
        return await asyncio.shield(self._ended)

    async def freeze(self) -> None:
        self._groups.freeze(self._group, True)

    async def resume(self) -> None:
        self._groups.freeze(self._group, False)

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """See contracts.driver.sandbox; nothing in it is asked."""
        if self._stopped:
            return
        self._note()
        await asyncio.shield(self._clear())
        if not self._stopped:
            self._stopped = True
            self._let_go()

    async def flush(self) -> None:
        """``output`` is the pipe that it prints into, so nothing is on its way."""

    async def most_memory(self) -> int:
        self._note()
        return self._most_memory

    async def _clear(self) -> None:
        """The program that starts it may still be at work, so processes may appear until that has ended."""
        rounds = 0
        while not self._ended.done():
            await self._groups.clear(self._group, self._clock)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await asyncio.shield(self._ended)
            rounds += 1
            if rounds == PATIENT_ROUNDS:
                self._process.kill()
        await self._groups.clear(self._group, self._clock)
        self.runtime_api.close()
        with contextlib.suppress(OSError):
            if self.output >= 0:
                os.close(self.output)
        self.output = -1

    def _note(self) -> None:
        self._most_memory = max(self._most_memory, self._groups.most_memory(self._group))

    def _on_end(self) -> None:
        if self._descriptor is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        code = self._process.wait()
        self._note()
        killed = self._groups.out_of_memory_kills(self._group) > 0
        if not self._ended.done():
            self._ended.set_result(read_exit(code, out_of_memory=killed))


Launched = tuple["subprocess.Popen[bytes]", socket.socket, int]  # the process, its Runtime API, its output


async def bring_up(
    launch: Callable[[], Launched], make: Callable[[Launched], Started], clear: Callable[[], Awaitable[object]]
) -> Started:
    """Run ``launch`` in a thread of its own, and ``make`` with its result. Cancelled or failed: nothing is left, and ``clear``
    was called if there never was anything."""
    found: list[Launched] = []
    try:
        await run_in_own_thread(lambda: found.append(launch()))
    except BaseException:
        await asyncio.shield(make(found[0]).stop() if found else _wait(clear))
        raise
    return make(found[0])


async def _wait(clear: Callable[[], Awaitable[object]]) -> None:
    await clear()
