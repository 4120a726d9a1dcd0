"""The end of a machine's process: for whoever asks it has ended when all of that end is done, and not before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import BootDisk, GuestPlan, ProcessFacts
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import inspect_process
from weft.drivers.runtime.qemu import guest as module
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.record import GuestEnd, GuestRecord, write_record
from weft.drivers.runtime.qemu.translate import GuestPaths

PLAN = GuestPlan(
    id="abcdefghij",
    uid="00000000-0000-4000-8000-000000000001",
    name="web",
    incarnation=1,
    machine="q35",
    cpu=1,
    vcpus=1,
    memory_bytes=1 << 26,
    boot=BootDisk("bios"),
    disks=[],
    nics=[],
    hostname="web",
)


async def test_an_end_that_is_still_written_down_is_overtaken_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run's folder and record bear the same names: they would go with the last one's."""
    paths = GuestPaths(run=tmp_path / "run", state=tmp_path / "state")
    paths.run.mkdir()
    process = await asyncio.create_subprocess_exec("sleep", "60")
    loop, begun, disk = asyncio.get_running_loop(), asyncio.Event(), module.threading.Event()

    def write_slowly(paths: GuestPaths, record: GuestRecord, *, durable: bool) -> None:
        loop.call_soon_threadsafe(begun.set)
        disk.wait(10)
        write_record(paths, record, durable=durable)

    monkeypatch.setattr(module, "write_record", write_slowly)
    record = GuestRecord(PLAN, "tcg", "boot", 1.0, process=inspect_process(process.pid))
    guest = Guest(paths, record, ControlGroups("weft-test-end"), SystemClock(), lambda: None)
    try:
        await guest.watch()
        process.kill()
        await process.wait()
        await asyncio.wait_for(begun.wait(), 60)
        settled = asyncio.create_task(guest.settle())
        quitted = asyncio.create_task(guest.quit())
        await asyncio.sleep(0)
        assert guest.facts().state == "running" and not settled.done() and not quitted.done()
        disk.set()
        await asyncio.wait_for(asyncio.gather(settled, quitted), 60)
        assert guest.facts().state == "failed" and not paths.run.exists()
        assert paths.record.exists()
    finally:
        disk.set()
        await guest.close()


@pytest.mark.parametrize(
    ("told", "reason", "code"),
    [
        (ProcessFacts(False, 1, 3), "guestPoweredOff", 3),
        (ProcessFacts(True), "guestPoweredOff", None),  # people asked it to power off
        (ProcessFacts(False, 1, 3), "killed", None),
        (None, "guestPoweredOff", None),
    ],
)
def test_a_machine_that_is_off_since_its_process_ended_has_that_one_s_exit_code(
    tmp_path: Path, told: ProcessFacts | None, reason: str, code: int | None
) -> None:
    record = GuestRecord(PLAN, "tcg", "boot", 1.0, process_report=told, end=GuestEnd("stopped", reason))
    paths = GuestPaths(run=tmp_path / "run", state=tmp_path / "state")
    facts = Guest(paths, record, ControlGroups("weft-test-end"), SystemClock(), lambda: None).facts()
    assert (facts.exit_code, facts.process) == (code, None)
    assert (facts.message == "its process ended with exit code 3") is (code == 3)
