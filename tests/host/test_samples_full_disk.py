"""Samples on a full disk: a real small file system. They are gaps until there is space, and all else goes on."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.samples.files import SampleFiles
from weft.agent.samples.sampler import Sampler
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import Counted
from weft.kinds.parts.stream_verbs import SamplesInput

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Steady:
    """So many counters that each second needs another block of the disk; each counts one a second."""

    names = tuple(f"disk.d{n}.{part}" for n in range(24) for part in ("read", "written", "reads", "writes"))

    def read(self, at: float, *, often: bool) -> Counted:
        return Counted(at, dict.fromkeys(self.names, at))

    def close(self) -> None: ...


class Runtime:
    def find(self, local: Any) -> Runtime:
        return self

    def open_counters(self, guest_id: str) -> list[Steady]:
        return [Steady()]


async def wait_until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.05)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as problem:
            assert problem.errno == errno.ENOSPC


async def test_a_full_disk_makes_gaps_and_is_told_once(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weft.agent")
    workload = SimpleNamespace(uid="vm1")
    guest = SimpleNamespace(state="running", shape=None, pid=1, started_at=1.0, incarnation=1)
    spec = SimpleNamespace(role="active", nics=[], workload=workload, migration=None)
    table: Any = [SimpleNamespace(guest=guest, local=SimpleNamespace(id="g", uid="a", spec=spec))]
    runtimes: Any = Runtime()
    sampler = Sampler(SampleFiles(small / "samples"), runtimes, table, SystemClock())
    keeping = asyncio.create_task(sampler.keep())

    async def read() -> list[float | None]:
        given = SamplesInput(time_range=60.0, granularity=0.2, series=["disk.d7.read"])
        series = json.loads(await sampler.answer("vm1", given))["series"]  # none before the first sample
        return [value for one in series for _, value in one["points"]]

    async def count() -> int:
        return sum(value is not None for value in await read())

    try:
        async with asyncio.timeout(60):
            while await count() < 3:
                await asyncio.sleep(0.1)
        fill(small / "filler")
        await wait_until(lambda: "not being recorded" in caplog.text)
        assert "No space left on device" in caplog.text
        before = await count()
        (small / "filler").unlink()
        await wait_until(lambda: "recorded again" in caplog.text)
        async with asyncio.timeout(60):
            while await count() < before + 3:
                await asyncio.sleep(0.1)
        values = await read()
        known = [value for value in values if value is not None]
        assert all(0.9 < value < 1.1 for value in known), known
        assert None in values[values.index(known[0]) :] and caplog.text.count("not being recorded") == 1
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
