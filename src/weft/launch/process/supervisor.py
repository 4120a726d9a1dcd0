"""Keeps a process alive: starts it again whenever it ends."""

from __future__ import annotations

import asyncio
import ctypes
import resource
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

from weft.contracts.clock import Clock
from weft.objects.errors import WeftError

PR_SET_PDEATHSIG = 1
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
HEALTHY_AFTER_SECONDS = 10.0
REFUSED = 78  # the status of a process that only a person can help (EX_CONFIG of sysexits.h): it isn't started again


class Command(NamedTuple):
    """``environ`` is None for that of this process; ``most_data_bytes`` bounds its own memory (RLIMIT_DATA), 0 doesn't."""

    argv: Sequence[str]
    environ: Mapping[str, str] | None = None
    most_data_bytes: int = 0


class Supervisor:
    """Starts one command again whenever it ends, waiting longer after each quick death. ``name`` is for the log; ``plan`` gives the
    command of each start, which waits while it isn't ``is_ready``; ``note`` gets what it reports on stderr, too. A command that
    ends with REFUSED isn't started again: then ``on_refused`` is called. ``output`` gets the lines that the command writes, and
    what is reported of it, in the place of stderr."""

    def __init__(
        self,
        name: str,
        plan: Sequence[str] | Callable[[], Command],
        clock: Clock,
        is_ready: Callable[[], bool] = lambda: True,
        note: Callable[[str], None] = lambda _: None,
        on_refused: Callable[[], None] = lambda: None,
        output: Callable[[str], object] | None = None,
    ) -> None:
        self._name, self._note, self._on_refused = name, note, on_refused
        self._is_ready = is_ready
        self._plan = plan if callable(plan) else partial(Command, plan)
        self._clock = clock
        self._output = output
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def keep(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            while not self._is_ready():
                await self._clock.sleep(FIRST_BACKOFF_SECONDS)
            began = self._clock.elapsed()
            try:
                command = self._plan()
                self._process = await self._start(command)
                if (status := await self._process.wait()) == REFUSED:
                    self._note(f"WARNING {self._name} refused to start")
                    return self._on_refused()
                ended = f"exited with {status}"
            except (OSError, WeftError) as problem:  # a full disk, a program that is being replaced: it may pass
                ended = f"can't be started: {problem}"
            if self._clock.elapsed() - began > HEALTHY_AFTER_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            if not self._is_ready():
                continue
            self._report(f"weft server: {self._name} {ended}; restarting in {backoff:g} s")
            self._note(f"WARNING {self._name} {ended}; restarting in {backoff:g} s")
            await self._clock.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    def restart(self) -> None:
        """End it, if it runs, so that it starts again by a new plan."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if self._reading is not None:
            await self._reading

    async def _start(self, command: Command) -> asyncio.subprocess.Process:
        prepare = partial(_prepare, command.most_data_bytes)
        if self._output is None:
            return await asyncio.create_subprocess_exec(*command.argv, env=command.environ, preexec_fn=prepare)
        process = await asyncio.create_subprocess_exec(
            *command.argv, env=command.environ, preexec_fn=prepare, stdout=PIPE, stderr=STDOUT
        )
        assert process.stdout is not None
        self._reading = asyncio.create_task(_pass_on(process.stdout, self._output))
        return process

    def _report(self, line: str) -> None:
        if self._output is not None:
            self._output(line)
        else:
            print(line, file=sys.stderr, flush=True)


@asynccontextmanager
async def supervising(supervisors: Sequence[Supervisor]) -> AsyncIterator[None]:
    """Keep them all; at the end the last one ends first."""
    tasks = [asyncio.create_task(supervisor.keep()) for supervisor in supervisors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for supervisor in reversed(supervisors):
            await supervisor.end()


async def _pass_on(lines: asyncio.StreamReader, output: Callable[[str], object]) -> None:
    while True:
        try:
            line = await lines.readline()
        except ValueError:  # longer than 64 KiB: what was read of it is gone
            continue
        if not line:
            return
        output(line.decode(errors="replace").rstrip("\n"))


def _prepare(most_data_bytes: int) -> None:
    """Prepare the child: ask the kernel for a signal when the supervisor ends, however it ends (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if most_data_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (most_data_bytes, most_data_bytes))
