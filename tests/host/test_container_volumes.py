"""Containers with a volume: a disk with a file system, mounted for one container alone, let go of however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from container_lab import MIB, ContainerLab
from container_labs import SHARING, open_lab

from weft.contracts.driver.container import ContainerMount, ContainerPlan, User
from weft.contracts.driver.runtime import ExecRequest, GuestFacts
from weft.drivers.linux.processes import inspect_process
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import bear, printed

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=SHARING)
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("needs loop devices")
    with open_lab(request.param, "mkfs.ext4") as lab:
        yield lab


@pytest.fixture
async def driver(lab: ContainerLab) -> AsyncIterator[OciDriver]:
    async for driver in bear(lab):
        yield driver
    assert await let_go(lab)


def attached(lab: ContainerLab) -> list[str]:
    """Loop devices on files of this lab."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return [name for name in found if str(lab.folder) in name]


async def let_go(lab: ContainerLab) -> bool:
    async with asyncio.timeout(60):
        while attached(lab):
            await asyncio.sleep(0.02)
    return True


async def make_disk(lab: ContainerLab, name: str, size: int = 16 * MIB, owner: tuple[int, int] = (0, 0)) -> str:
    facts = await DirectoryVolumes(lab.host).ensure_files(name, size_bytes=size, owner=owner)
    return facts.path


def on(disk: str, target: str = "/data", *, read_only: bool = False) -> list[ContainerMount]:
    return [ContainerMount(disk, target, read_only, file_system="ext4")]


async def ended(driver: OciDriver, plan: ContainerPlan) -> GuestFacts:
    async with asyncio.timeout(30):
        while (facts := await driver.inspect(plan.id)).state == "running":
            await asyncio.sleep(0.02)
    return facts


async def run(driver: OciDriver, plan: ContainerPlan) -> str:
    """What it printed, once it is gone."""
    await driver.start(plan)
    await ended(driver, plan)
    said = await printed(driver, plan)
    await driver.remove(plan.id)
    return said


async def output_of(driver: OciDriver, plan: ContainerPlan, *argv: str) -> str:
    session = await driver.exec(plan.id, ExecRequest(list(argv)))
    try:
        return b"".join([chunk.data async for chunk in session.output() if chunk.channel == "stdout"]).decode()
    finally:
        await session.close()


async def test_what_it_writes_is_on_the_volume_and_the_next_container_has_it(
    lab: ContainerLab, driver: OciDriver
) -> None:
    disk = await make_disk(lab, "vol-one")
    text = "ls -A /data; echo mine > /data/file; stat -c '%u %g' /data /data/file; touch /data/a && chown 1000 /data/a"
    assert await run(driver, lab.script("first", text, mounts=on(disk))) == "0 0\n0 0\n"
    told = await run(driver, lab.script("second", "cat /data/file; stat -c %u /data/a", mounts=on(disk)))
    assert told == "mine\n1000\n"
    plain = lab.script("third", "cat /data/file; stat -c %u /data/a", mounts=on(disk), user_namespace=False)
    assert await run(driver, plain) == "mine\n1000\n"
    await let_go(lab)
    said = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    assert "User:  1000" in subprocess.run(["debugfs", "-R", "stat a", disk], capture_output=True, text=True).stdout


async def test_a_user_of_the_image_owns_a_volume_that_was_made_for_it(lab: ContainerLab, driver: OciDriver) -> None:
    disk = await make_disk(lab, "vol-user", owner=(1000, 1000))
    plan = lab.script("user", "id -u; echo x > /data/x && cat /data/x", user=User(1000, 1000), mounts=on(disk))
    assert await run(driver, plan) == "1000\nx\n"


async def test_read_only_is_read_only_and_nothing_on_it_is_a_device_or_somebody_else(
    lab: ContainerLab, driver: OciDriver
) -> None:
    disk = await make_disk(lab, "vol-ro")
    source = lab.folder / "id"
    shutil.copy(lab.layers[1] + "/bin/busybox", source)
    for request in (
        f"write {source} sh",
        "sif sh mode 0104755",
        "sif sh uid 0",
        "mknod null c 1 3",
        "sif null mode 020666",
    ):
        subprocess.run(["debugfs", "-w", "-R", request, disk], capture_output=True, check=True)
    text = "(echo x > /data/new) 2>/dev/null || echo read-only; (cat /data/null) 2>/dev/null || echo no device; "
    text += "grep ' /data ' /proc/mounts; /data/sh id -u 2>/dev/null || echo cannot"
    plan = lab.script("ro", text, user=User(1000, 1000), mounts=on(disk, read_only=True))
    said = await run(driver, plan)
    assert said.startswith("read-only\nno device\n")
    options = said.splitlines()[2].split()[3].split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)


async def test_it_holds_no_more_than_its_size(lab: ContainerLab, driver: OciDriver) -> None:
    disk = await make_disk(lab, "vol-small", 8 * MIB)
    text = "dd if=/dev/zero of=/data/big bs=1M count=20 2>&1 | grep -o 'No space left'; rm /data/big; "
    text += "echo ok > /data/ok; cat /data/ok"
    assert await run(driver, lab.script("full", text, mounts=on(disk))) == "No space left\nok\n"
    assert os.stat(disk).st_blocks * 512 <= 9 * MIB


async def test_two_never_have_it_at_once_and_a_machine_not_beside_one(lab: ContainerLab, driver: OciDriver) -> None:
    disk = await make_disk(lab, "vol-alone")
    await driver.start(lab.plan("has-it", mounts=on(disk)))
    with pytest.raises(DriverFailed, match="still in use"):
        await driver.start(lab.plan("wants-it", mounts=on(disk)))
    machine = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk], capture_output=True, text=True, check=False
    )
    assert "lock" in machine.stderr


async def test_the_agent_killed_with_a_volume_mounted_changes_nothing(lab: ContainerLab, driver: OciDriver) -> None:
    """The driver's end stands for the agent's: nothing of either holds the mount."""
    disk = await make_disk(lab, "vol-agent")
    plan = lab.script("stays", "trap 'exit 0' TERM; echo one > /data/one; sleep 1000 & wait", mounts=on(disk))
    await driver.start(plan)
    async with asyncio.timeout(20):
        while await output_of(driver, plan, "cat", "/data/one") != "one\n":
            await asyncio.sleep(0.05)
    await lab.close_drivers()
    second = lab.driver()
    [facts] = await second.recover()
    assert facts.state == "running"
    assert await output_of(second, plan, "cat", "/data/one") == "one\n"
    await lab.close_drivers()
    assert facts.pid is not None
    os.kill(facts.pid, signal.SIGTERM)
    async with asyncio.timeout(20):
        while inspect_process(facts.pid) is not None:
            await asyncio.sleep(0.02)
    assert await let_go(lab)  # though no driver looks
    third = lab.driver()
    [facts] = await third.recover()
    assert (facts.state, facts.reason) == ("stopped", "completed")


@pytest.mark.parametrize("whom", ["container", "shim and container"])
async def test_a_start_after_any_end_finds_what_was_written(lab: ContainerLab, driver: OciDriver, whom: str) -> None:
    disk = await make_disk(lab, f"vol-kill-{len(whom)}")
    plan = lab.script("again", "date >> /data/starts; sync; wc -l < /data/starts; sleep 1000", mounts=on(disk))
    for starts in ("1\n", "2\n", "3\n"):
        facts = await driver.start(plan)
        async with asyncio.timeout(20):
            while not (await printed(driver, plan)).endswith(starts):
                await asyncio.sleep(0.02)
        if whom != "container" and (shim := driver._known[plan.id].record.shim) is not None:
            os.kill(shim.pid, signal.SIGKILL)
        lab.kill(facts)
        await ended(driver, plan)


async def test_a_disk_that_is_no_file_system_ends_the_start_and_is_let_go_of(
    lab: ContainerLab, driver: OciDriver
) -> None:
    disk = lab.folder / "garbage"
    disk.write_bytes(b"\x55" * MIB)
    with pytest.raises(DriverFailed, match="Invalid argument"):
        await driver.start(lab.plan("garbage", mounts=on(str(disk))))
