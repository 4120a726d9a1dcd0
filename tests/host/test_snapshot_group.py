"""Guests of a group stand still together: one that heard of a number before the other wrote it is in none of their snapshots."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.register_assert_rewrite("tests.conformance.runtime_contract", "snapshot_lab")

from snapshot_lab import SnapshotLab, lay_over, measure
from tests.conformance.runtime_contract import ready, run

from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.qemu.driver import QemuDriver

pytestmark = pytest.mark.host
GROUPS = 4  # the last one with memory


@pytest.fixture(scope="module")
def lab(tiny: Path) -> Iterator[SnapshotLab]:
    lab = SnapshotLab(tiny)
    yield lab
    lab.close()


@pytest.fixture(autouse=True)
async def closing(lab: SnapshotLab) -> object:
    yield
    await lab.close_drivers()


def hold(lab: SnapshotLab, plan: GuestPlan, key: str, seconds: float = 60.0, *, memory: bool = False) -> SnapshotPlan:
    return msgspec.structs.replace(lab.plan_snapshot(plan, key, memory=memory), hold=seconds)


async def count(driver: QemuDriver, guests: list[GuestPlan], told: list[int]) -> None:
    """Each number is first on the disk of the first guest, then on that of the second."""
    for number in range(1, 10**6):
        for guest in guests:
            write = f"printf %08d {number} | dd of=/dev/vdb conv=fsync 2>/dev/null"
            await run(driver, guest.id, "sh", "-c", write)
        told[0] = number


def read_number(disk: GuestDisk) -> int:
    """What stands on a disk that nobody writes to any more."""
    command = ["qemu-io", "-U", "-r", "-f", disk.format, "-c", "read -v 0 8", disk.path]
    if disk.format == "qcow2" and disk.layers:
        below = disk.layers[-1]
        backing = f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{disk.path}"}},'
        backing += f'"backing":{nest([*disk.layers])}}}'
        assert below.path
        command = ["qemu-io", "-U", "-r", "-c", "read -v 0 8", backing]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(bytes.fromhex("".join(said.split(":")[1].split()[:8])))


def nest(layers: list[object]) -> str:
    top = layers[-1]
    file = f'"file":{{"driver":"file","filename":"{top.path}"}}'  # type: ignore[attr-defined]
    rest = f',"backing":{nest(layers[:-1])}' if len(layers) > 1 else ""
    if top.format == "qcow2" and not rest:  # type: ignore[attr-defined]
        rest = ',"backing":null'
    return f'{{"driver":"{top.format}",{file}{rest}}}'  # type: ignore[attr-defined]


async def test_no_group_has_a_number_of_which_one_guest_heard_before_the_other(lab: SnapshotLab) -> None:
    driver = lab.driver()
    first, second = lab.plan("first", disks=1), lab.plan("second", disks=1)
    assert measure(first.disks[1]) > 0
    await asyncio.gather(ready(driver, first), ready(driver, second))
    told = [0]
    counting = asyncio.ensure_future(count(driver, [first, second], told))
    now = [first, second]
    try:
        for number in range(GROUPS):
            seen = told[0]
            async with asyncio.timeout(60):
                while told[0] <= seen:
                    await asyncio.sleep(0.02)
            key = f"g{number}"
            order = now if number % 2 else now[::-1]
            plans = {guest.id: hold(lab, guest, key, memory=number % 4 == 3) for guest in order}
            for guest in order:  # one after the other: the numbers go on in between
                facts = await driver.snapshots.take(guest.id, plans[guest.id])
                assert (facts.phase, facts.switched) == ("holding", True), facts
                await asyncio.sleep(0.1)
            for guest in order:
                facts = await driver.snapshots.release(guest.id, key)
                assert facts.phase in ("done", "saving") and facts.pause_ms > 0, facts
                assert facts.consistency == ("memory" if number % 4 == 3 else "filesystem"), facts
            found = [read_number(guest.disks[1]) for guest in now]
            assert found[0] - found[1] in (0, 1) and found[1] >= seen, (number, found)
            for guest in now:
                async with asyncio.timeout(60):
                    while (await driver.snapshots.progress(guest.id, key)).phase == "saving":
                        await asyncio.sleep(0.05)
                await driver.snapshots.forget(guest.id, key)
            now = [lay_over(guest, plans[guest.id]) for guest in now]
    finally:
        counting.cancel()
        await asyncio.gather(counting, return_exceptions=True)
    for guest in now:
        await driver.stop(guest.id, grace_seconds=0)


@pytest.mark.parametrize("ends", ["by itself", "cancelled", "driver closed", "driver gone"])
async def test_a_guest_that_nobody_releases_runs_on_and_its_snapshot_has_failed(lab: SnapshotLab, ends: str) -> None:
    plan, driver = lab.plan(f"held-{ends.replace(' ', '-')}", disks=1), lab.driver()
    await ready(driver, plan)
    facts = await driver.snapshots.take(plan.id, hold(lab, plan, "k", 0.5 if ends == "by itself" else 60.0))
    assert facts.phase == "holding" and not (await driver.inspect(plan.id)).held
    if ends == "by itself":
        await asyncio.sleep(1.0)
    elif ends == "cancelled":
        await driver.snapshots.cancel(plan.id, "k")
    elif ends == "driver closed":
        await driver.close()
        driver = lab.driver()
    else:  # as after a kill: nothing that it would still do is done
        guest = await driver._guests.get(plan.id)
        guest.hold.end()
        await guest.close()
        driver = lab.driver()
    await driver.recover()
    facts = await driver.snapshots.release(plan.id, "k")
    assert facts.phase == "failed" and facts.switched and facts.message, facts
    await run(driver, plan.id, "sh", "-c", "echo 1 > /root/runs; sync")
    await driver.snapshots.forget(plan.id, "k")
    await driver.stop(plan.id, grace_seconds=0)


async def test_a_guest_whose_agent_is_killed_runs_on_before_the_next_one_comes(lab: SnapshotLab) -> None:
    plan, driver = lab.plan("held-killed", disks=1), lab.driver()
    await ready(driver, plan)
    await driver.close()
    order = lab.folder / "order.json"
    order.write_bytes(msgspec.json.encode(hold(lab, plan, "k")))
    host, json_plan = (msgspec.json.encode(part).decode() for part in (lab.host, plan))
    program = Path(__file__).with_name("crashing_driver.py")
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), host, json_plan, f"hold:{order}", "0")
    )
    assert await killed.wait() == -signal.SIGKILL
    async with asyncio.timeout(30):
        while await ask_status(lab, plan) != "running":
            await asyncio.sleep(0.05)
    driver = lab.driver()
    await driver.recover()
    facts = await driver.snapshots.release(plan.id, "k")
    assert facts.phase == "failed" and facts.switched and "agent ended while the guest stood still" in facts.message
    await run(driver, plan.id, "sh", "-c", "echo 1 > /root/runs; sync")
    await driver.snapshots.forget(plan.id, "k")
    await driver.stop(plan.id, grace_seconds=0)


async def ask_status(lab: SnapshotLab, plan: GuestPlan) -> str:
    """What QEMU says itself, by the second monitor, which nobody else uses here."""
    reader, writer = await asyncio.open_unix_connection(str(Path(lab.host.run_dir, plan.id, "qmp2")))
    try:
        for command in ("qmp_capabilities", "query-status"):
            writer.write(msgspec.json.encode({"execute": command}) + b"\n")
        while True:
            answer = msgspec.json.decode(await reader.readline())
            if "status" in (answer.get("return") or {}):
                return str(answer["return"]["status"])
    finally:
        writer.close()
