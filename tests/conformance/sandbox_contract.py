"""What every sandbox promises, whatever holds it: a container of each runtime, in a microVM or not, and a function's instance of
each isolation. A driver's test subclasses ``LastingPromises`` (what outlives its agent) or ``PassingPromises`` (what doesn't).

The subclass gives the fixture ``lab``: one node, on which ``start`` runs a shell script in a sandbox of its kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

import pytest

WAIT_SECONDS = 60.0
MIB = 1 << 20
DISK_BYTES = 32 * MIB  # what one may write into its files
PROCESSES = 24
KEPT_BYTES = 96 * MIB  # most that the node keeps of what one prints


class End(NamedTuple):
    code: int | None
    signal: int | None = None
    out_of_memory: bool = False


class Running(Protocol):
    """A sandbox that was started."""

    async def wait(self) -> End: ...

    async def freeze(self) -> None: ...

    async def resume(self) -> None: ...

    async def stop(self, grace_seconds: float = 0.0) -> None: ...

    async def printed(self) -> str:
        """All that it has printed by now."""

    async def most_memory(self) -> int:
        """Bytes that it had at some time."""

    def cpu_seconds(self) -> float:
        """As the kernel counts its processes, those that live."""

    def kill(self) -> None:
        """Its first process, or its machine, ends from one moment to the next."""


class SandboxLab(Protocol):
    """One node. A sandbox may write ``DISK_BYTES`` into /tmp and have ``PROCESSES`` processes."""

    async def start(self, name: str, text: str) -> Running: ...

    async def restart_agent(self) -> list[str]:
        """The driver is forgotten as if its process had been killed, and another one recovers; the names of what runs then."""

    def measure_kept(self) -> int:
        """Bytes on this node's disk and in its run folder that have to do with sandboxes."""

    def leftovers(self) -> list[str]:
        """Processes, mounts, control groups and run files of any sandbox that there was."""

    async def close(self) -> None: ...


async def says(running: Running, word: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while word not in await running.printed():
            await asyncio.sleep(0.05)


async def end_of(running: Running) -> End:
    async with asyncio.timeout(WAIT_SECONDS):
        return await running.wait()


class SandboxPromises:
    @pytest.fixture(autouse=True)
    async def nothing_is_left(self, lab: SandboxLab) -> AsyncIterator[None]:
        yield
        await lab.close()
        assert lab.leftovers() == []

    async def test_its_processes_are_bounded_and_so_is_what_it_writes(self, lab: SandboxLab) -> None:
        forks = await lab.start("forks", "i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done; echo all of them")
        end = await end_of(forks)
        assert end.code and "all of them" not in await forks.printed()
        # Not by head, which takes byte by byte: in an emulated machine that is ten seconds. 80 MB are enough to be too much.
        fill = "(ulimit -f 160000; cat /dev/zero >/tmp/x) && echo all; wc -c </tmp/x"
        writes = await lab.start("writes", fill)
        assert await end_of(writes) == End(0)
        text = await writes.printed()
        assert "all\n" not in text and MIB < int(text.split()[-1]) <= 2 * DISK_BYTES
        for running in (forks, writes):
            await running.stop()

    async def test_what_it_prints_without_end_is_bounded_and_it_can_be_stopped(self, lab: SandboxLab) -> None:
        floods = await lab.start("floods", "exec yes 0123456789012345678901234567890123456789")
        before = lab.measure_kept()
        for _ in range(10):
            await asyncio.sleep(0.15)
            assert lab.measure_kept() - before <= KEPT_BYTES
        await floods.stop()
        assert (await end_of(floods)).code != 0

    async def test_frozen_it_has_no_cpu_and_it_goes_on_where_it_was(self, lab: SandboxLab) -> None:
        works = await lab.start("works", "echo up; i=0; while :; do i=$((i+1)); done")
        await says(works, "up")
        await works.freeze()
        await works.freeze()
        frozen = works.cpu_seconds()
        await asyncio.sleep(0.5)
        assert works.cpu_seconds() - frozen < 0.05 and await works.most_memory() > 0
        await works.resume()
        await works.resume()
        async with asyncio.timeout(WAIT_SECONDS):
            while works.cpu_seconds() - frozen < 0.2:
                await asyncio.sleep(0.02)
        await works.freeze()
        await works.stop()
        assert await end_of(works) == End(None, 9)


class LastingPromises(SandboxPromises):
    """Of containers, which keep ``ContainerPromises``, too: how they end, and who finds them again."""

    async def test_one_that_is_frozen_hears_that_it_is_asked_to_end(self, lab: SandboxLab) -> None:
        polite = await lab.start("polite", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done")
        await says(polite, "up")
        await polite.freeze()
        await polite.stop(WAIT_SECONDS)
        assert await end_of(polite) == End(7) and (await polite.printed()).endswith("bye\n")


class PassingPromises(SandboxPromises):
    async def test_it_prints_and_ends_with_a_code_or_a_signal(self, lab: SandboxLab) -> None:
        runs, victim = (
            await lab.start("runs", "echo one; echo two >&2; exit 3"),
            await lab.start("dies", "echo up; sleep 99"),
        )
        assert await end_of(runs) == End(3)
        assert sorted((await runs.printed()).split()) == ["one", "two"]
        await says(victim, "up")
        victim.kill()
        assert await end_of(victim) == End(None, 9)
        for running in (runs, victim):  # one that has ended may be stopped, and stopped again
            await running.stop()
            await running.stop()

    async def test_its_memory_is_bounded(self, lab: SandboxLab) -> None:
        hungry = await lab.start("hungry", "exec tail /dev/zero")
        assert (await end_of(hungry))[1:] == (9, True)
        await hungry.stop()

    async def test_its_agent_is_killed_and_the_next_one_ends_it(self, lab: SandboxLab) -> None:
        one, two = await lab.start("one", "echo up; sleep 99"), await lab.start("two", "echo up; sleep 99")
        await says(one, "up")
        await says(two, "up")
        await two.freeze()
        assert await lab.restart_agent() == []
        assert await end_of(one) == await end_of(two) == End(None, 9)

    async def test_a_start_that_is_cancelled_leaves_nothing(self, lab: SandboxLab) -> None:
        for seconds in (0.0, 0.01, 0.05):
            starting = asyncio.create_task(lab.start("never", "sleep 99"))
            await asyncio.sleep(seconds)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
