"""One instance that is a process of this node in a control group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable

from weft.contracts.clock import Clock
from weft.contracts.driver.function import Ended
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.namespace_thread import run_in_own_thread

ROUND_SECONDS, PATIENT_ROUNDS = 0.2, 25
SIGNAL_OFFSET = 128  # how a sandbox tells that a signal ended what ran in it


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
        self._paused = False
        self._stopped = False
        self._most_memory = 0
        self._descriptor: int | None = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_end)

    async def wait(self) -> Ended:
        return await asyncio.shield(self._ended)

    async def pause(self) -> None:
        self._groups.freeze(self._group, True)
        self._paused = True

    async def resume(self) -> None:
        self._groups.freeze(self._group, False)
        self._paused = False

    async def stop(self) -> None:
        """See contracts.function."""
        if self._stopped:
            return
        self._note()
        await asyncio.shield(self._clear())
        if not self._stopped:
            self._stopped = True
            self._let_go()

    async def flush(self) -> None:
        """What it prints into is ``output``."""

    async def most_memory(self) -> int:
        self._note()
        return self._most_memory

    async def _clear(self) -> None:
        """What starts it may still be at work: then there is something to end only after it."""
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
    """``launch`` in a thread of its own, and ``make`` of what it gives. Cancelled or failed: nothing is left, and ``clear`` was
    called if there never was anything."""
    found: list[Launched] = []
    try:
        await run_in_own_thread(lambda: found.append(launch()))
    except BaseException:
        await asyncio.shield(make(found[0]).stop() if found else _wait(clear))
        raise
    return make(found[0])


async def _wait(clear: Callable[[], Awaitable[object]]) -> None:
    await clear()


def read_exit(code: int, *, out_of_memory: bool) -> Ended:
    """Pure. ``code`` as Popen has it: negative for a signal of its own."""
    if code < 0:
        return Ended(signal=-code, out_of_memory=out_of_memory)
    if code > SIGNAL_OFFSET:
        return Ended(signal=code - SIGNAL_OFFSET, out_of_memory=out_of_memory and code - SIGNAL_OFFSET == 9)
    return Ended(code=code, out_of_memory=False)
