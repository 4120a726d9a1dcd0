"""Files with samples of workloads that a node no longer has: weft/agent/samples/files.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weft.agent.samples.files import SampleFiles
from weft.agent.samples.sampler import Sampler
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.objects.identity import short_id


class Quick(SystemClock):
    """One whose sleeps take no time."""

    slept = 0

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        await asyncio.sleep(0)


async def test_a_workload_s_figures_go_when_it_has_left_and_not_a_minute_later(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    table: Any = [
        SimpleNamespace(
            guest=None, local=SimpleNamespace(uid=uid, spec=SimpleNamespace(workload=SimpleNamespace(uid=uid)))
        )
        for uid in ("stays", "leaves")
    ]
    files = {uid: folder / f"{short_id(uid)}.samples" for uid in ("stays", "leaves")}
    for path in files.values():
        path.touch()
    clock = Quick()
    keeping = asyncio.create_task(Sampler(SampleFiles(folder), Runtimes({}), table, clock, None).keep())
    try:
        async with asyncio.timeout(20):
            while clock.slept < 3:
                await asyncio.sleep(0.01)
            assert all(path.exists() for path in files.values())
            del table[1]
            while files["leaves"].exists():
                await asyncio.sleep(0.01)
        assert files["stays"].exists()
    finally:
        keeping.cancel()
