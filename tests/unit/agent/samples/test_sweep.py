"""Samples of workloads that have left, and of one that can't be measured: weft/agent/samples/files.py, sampler.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weft.agent.samples.files import SampleFiles
from weft.agent.samples.sampler import Sampler
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import Counted
from weft.kinds.parts.stream_verbs import SamplesInput
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


class Broken:
    """Counters of a driver with a defect."""

    names = ("cpu",)

    def read(self, at: float, *, often: bool) -> Counted:
        raise OverflowError("int too large to convert to float")

    def close(self) -> None: ...


class Fine(Broken):
    def __init__(self, asked: set[bool]) -> None:
        self._asked = asked

    def read(self, at: float, *, often: bool) -> Counted:
        self._asked.add(often)
        return Counted(at, {"cpu": at})


class Drivers:
    def __init__(self) -> None:
        self.asked = dict[str, set[bool]]()  # whether they were read often, by guest

    def find(self, local: Any) -> Drivers:
        return self

    def open_counters(self, guest_id: str) -> list[Broken]:
        return [Broken() if guest_id == "broken" else Fine(self.asked.setdefault(guest_id, set()))]


async def test_a_workload_that_can_not_be_measured_keeps_no_other_from_it_and_one_that_migrates_is_not_read_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guest = SimpleNamespace(state="running", shape=None, pid=1, started_at=1.0, incarnation=1)
    table: Any = []
    for name, migration in (("broken", None), ("fine", None), ("moving", "under way")):
        spec = SimpleNamespace(role="active", nics=[], workload=SimpleNamespace(uid=name), migration=migration)
        table.append(SimpleNamespace(guest=guest, local=SimpleNamespace(id=name, uid=name, spec=spec)))
    files = SampleFiles(tmp_path / "samples")
    drivers: Any = Drivers()
    sampler = Sampler(files, drivers, table, SystemClock())
    keeping = asyncio.create_task(sampler.keep())
    try:
        async with asyncio.timeout(20):
            while b'"points":[]' in (now := await sampler.answer("fine", SamplesInput(1.0))) or b",1.0]" not in now:
                assert not keeping.done()
                await asyncio.sleep(0.1)
            await sampler.answer("moving", SamplesInput(1.0))
            drivers.asked["fine"].clear()
            while True not in drivers.asked["fine"]:
                await asyncio.sleep(0.1)
        assert drivers.asked["moving"] == {False}  # though somebody watches it
        assert caplog.text.count("not being recorded") == 1
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
