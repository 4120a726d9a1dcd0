"""An encrypted volume is plain inside its guest alone: not in its file, not in a process list, and not without its key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from guest_lab import MIB, GuestLab

from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

pytestmark = pytest.mark.host
MARK, KEY, OTHER = b"this must not be read in the pool", "5a" * 32, "a5" * 32
VOLUME = "8f1f3c9e-1c2d-4b6a-9a55-0d5f6b9c1a11"


@pytest.fixture
def keys() -> Iterator[list[str]]:
    """Paths of a key, which the test closes, and of another one, in memory as an agent has them."""
    files = []
    for text in (KEY, OTHER):
        files.append(os.memfd_create("key"))
        os.write(files[-1], text.encode())
    yield [f"/proc/{os.getpid()}/fd/{file}" for file in files]
    os.close(files[1])


async def shell(driver: QemuDriver, plan: GuestPlan, script: str) -> bytes:
    out, err, code = await run(driver, plan.id, "sh", "-c", script)
    assert code == 0, err
    return out


def read_command_lines() -> bytes:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return b"".join(lines)


async def test_an_encrypted_volume_is_plain_in_its_guest_alone(
    lab: GuestLab, driver: QemuDriver, keys: list[str]
) -> None:
    right, wrong = keys
    facts = await DirectoryVolumes(lab.host).encryption.ensure(VOLUME, size_bytes=64 * MIB, key=right)
    bare = lab.plan("vault")
    disk = GuestDisk(facts.path, facts.format, "data", key=right)
    plan = msgspec.structs.replace(bare, disks=[*bare.disks, disk])
    await ready(driver, plan)
    assert KEY.encode() not in read_command_lines()
    find = "d=/dev/$(grep -l data /sys/block/vd*/serial | cut -d/ -f4)"
    await shell(driver, plan, f"{find}; printf '{MARK.decode()}' | dd of=$d bs=512 seek=2048 conv=notrunc,fsync")
    content = Path(facts.path).read_bytes()
    assert content.startswith(b"QFI\xfb") and MARK not in content
    for path in lab.folder.rglob("*"):
        assert not path.is_file() or path.stat().st_size > 4 * MIB or KEY.encode() not in path.read_bytes(), path

    await driver.adjust(bare)  # and it is plugged in again while the guest runs
    await driver.adjust(plan)
    assert MARK in await shell(driver, plan, f"sleep 1; {find}; dd if=$d bs=512 skip=2048 count=1")

    await driver.suspend(plan.id)
    moved = os.memfd_create("key")  # as after a restart of the agent: the former path leads nowhere
    os.write(moved, KEY.encode())
    again = msgspec.structs.replace(disk, key=f"/proc/{os.getpid()}/fd/{moved}")
    os.close(int(Path(right).name))
    await driver.start(msgspec.structs.replace(plan, disks=[*bare.disks, again]))
    assert MARK in await shell(driver, plan, f"{find}; dd if=$d bs=512 skip=2048 count=1")
    os.close(moved)

    await driver.stop(plan.id, grace_seconds=0)
    mistaken = msgspec.structs.replace(plan, disks=[*bare.disks, msgspec.structs.replace(disk, key=wrong)])
    with pytest.raises(DriverFailed) as refused:
        await driver.start(mistaken)
    assert OTHER not in str(refused.value) and "data" in str(refused.value)
