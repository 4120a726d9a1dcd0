"""A running guest gets more and less: CPUs, memory, disks, NICs; and is the same after an agent's death or a suspension."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from guest_lab import MIB, GuestLab, make_disk

from weft.contracts.driver.runtime import GuestDisk, GuestNic, GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.qmp import Qmp
from weft.objects.errors import InvalidInput

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run, until

pytestmark = pytest.mark.host
TAP = "wtgrow0"


@pytest.fixture
def plan(lab: GuestLab) -> GuestPlan:
    return lab.plan("growing", memory_bytes=128 * MIB, disks=1)


@pytest.fixture
def nic() -> Iterator[GuestNic]:
    subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"], check=True)
    yield GuestNic(TAP, "52:54:00:0a:0b:0c", 1400)
    subprocess.run(["ip", "link", "del", TAP], check=True)


def data_disk(lab: GuestLab, name: str, size_bytes: int = 0) -> GuestDisk:
    path = lab.folder / f"{name}.qcow2"
    if not path.exists():
        make_disk(path, size_bytes=64 * MIB)
    return GuestDisk(str(path), "qcow2", name, size_bytes=size_bytes)


async def shell(driver: QemuDriver, plan: GuestPlan, script: str) -> str:
    out, err, code = await run(driver, plan.id, "sh", "-c", script)
    assert code == 0, err.decode() + out.decode()
    return out.decode().strip()


async def soon(driver: QemuDriver, plan: GuestPlan, script: str) -> None:
    """``script`` succeeds in the guest within a minute: its kernel may need a moment."""
    for _ in range(12):
        tries = f"for n in $(seq 50); do {{ {script}; }} && exit 0; sleep 0.1; done; exit 1"
        try:
            out, err, code = await run(driver, plan.id, "sh", "-c", tries)
        except TimeoutError:
            raise AssertionError(f"it has not ended: {script}\n{await look_inside(driver, plan)}") from None
        if code == 0:
            return
    raise AssertionError(f"it never came: {script}\n{(err + out).decode()}")


async def look_inside(driver: QemuDriver, plan: GuestPlan) -> str:
    """What another command sees in a guest in which one doesn't end: whether the guest hangs, or only that command's session."""
    try:
        async with asyncio.timeout(20):
            out, _, _ = await run(
                driver, plan.id, "sh", "-c", "ps -o pid,stat,args; cat /proc/interrupts; dmesg | tail"
            )
    except TimeoutError:
        return f"nor does another command: {await driver.inspect(plan.id)}"
    return out.decode()


def listed(serials: str) -> str:
    """A script that succeeds if the guest's disks are these."""
    return f"[ \"$(for d in /sys/block/vd*; do cat $d/serial; echo; done | sort | xargs)\" = '{serials}' ]"


class Killer:
    """Ends the work before its ``step``-th command that changes anything."""

    def __init__(self, step: int) -> None:
        self.left = step

    async def __call__(self, real: Any, qmp: Qmp, command: str, more: dict[str, Any]) -> Any:
        self.left -= command.split("-")[0] not in ("query", "qom")
        if self.left == 0:
            raise ConnectionAbortedError(command)
        return await real(qmp, command, **more)


@pytest.mark.long
async def test_more_cpus_and_memory_are_used_by_the_guest_and_memory_can_be_taken_back(
    driver: QemuDriver, plan: GuestPlan
) -> None:
    boot_id = (await ready(driver, plan)).boot_id
    assert await shell(driver, plan, "nproc") == "1"
    facts = await driver.adjust(msgspec.structs.replace(plan, cpu=2.0, vcpus=2, memory_bytes=512 * MIB))
    assert facts.shape is not None and (facts.shape.cpu, facts.shape.memory_bytes) == (2.0, 512 * MIB)
    await soon(driver, plan, "[ $(nproc) = 2 ]")
    await soon(driver, plan, "[ $(awk '/MemTotal/{print $2}' /proc/meminfo) -gt 400000 ]")
    await shell(
        driver,
        plan,
        "mount -o remount,size=200M /dev/shm && dd if=/dev/zero of=/dev/shm/full bs=1M count=150 && rm /dev/shm/full",
    )
    await driver.adjust(msgspec.structs.replace(plan, cpu=2.0, vcpus=2, memory_bytes=256 * MIB))
    await soon(driver, plan, "[ $(awk '/MemTotal/{print $2}' /proc/meminfo) -lt 300000 ]")
    assert (await driver.inspect(plan.id)).boot_id == boot_id


async def test_disks_come_grow_and_go(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    await ready(driver, plan)
    more = data_disk(lab, "more")
    with_it = msgspec.structs.replace(plan, disks=[*plan.disks, more])
    await driver.adjust(with_it)
    await driver.adjust(with_it)  # what is there already stays
    await soon(driver, plan, "grep -qx more /sys/block/*/serial")
    await shell(driver, plan, "d=$(dirname $(grep -lx more /sys/block/*/serial)); echo kept > /dev/${d##*/}; sync")
    larger = msgspec.structs.replace(more, size_bytes=96 * MIB)
    await driver.adjust(msgspec.structs.replace(plan, disks=[*plan.disks, larger]))
    sectors = 96 * MIB // 512
    await soon(driver, plan, f"[ $(cat $(dirname $(grep -lx more /sys/block/*/serial))/size) = {sectors} ]")
    await driver.adjust(plan)
    await soon(driver, plan, "! grep -qx more /sys/block/*/serial")
    without_the_first = msgspec.structs.replace(plan, disks=[plan.disks[0], more])
    await driver.adjust(without_the_first)
    await soon(driver, plan, listed("more root"))
    assert (
        await shell(driver, plan, "d=$(dirname $(grep -lx more /sys/block/*/serial)); head -c 4 /dev/${d##*/}")
        == "kept"
    )
    await driver.adjust(plan)


async def test_nics_come_and_go(driver: QemuDriver, plan: GuestPlan, nic: GuestNic) -> None:
    await ready(driver, plan)
    await driver.adjust(msgspec.structs.replace(plan, nics=[nic]))
    await soon(driver, plan, f"grep -qx {nic.mac} /sys/class/net/*/address")
    await driver.adjust(plan)
    await soon(driver, plan, f"! grep -qx {nic.mac} /sys/class/net/*/address")


async def test_what_was_plugged_in_outlives_an_agent_and_a_suspension(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan
) -> None:
    boot_id = (await ready(driver, plan)).boot_id
    more = data_disk(lab, "more")
    grown = msgspec.structs.replace(
        plan, cpu=2.0, vcpus=2, memory_bytes=384 * MIB, disks=[plan.disks[0], more, plan.disks[1]]
    )
    shape = (await driver.adjust(grown)).shape
    await soon(driver, plan, "[ $(nproc) = 2 ]")
    await driver.close()
    heir = lab.driver()
    await heir.recover()
    await ready(heir, grown)
    assert (await heir.inspect(plan.id)).shape == shape
    await heir.suspend(plan.id)
    await ready(heir, plan)  # the wish was changed back meanwhile: it resumes as what it was
    facts = await until(heir, plan.id, lambda facts: facts.ready is True)
    assert facts.boot_id == boot_id and facts.shape is not None and facts.shape.memory_bytes == 384 * MIB
    assert await shell(heir, plan, "nproc") == "2"
    await soon(heir, plan, listed("data-0 more root"))  # it may have been suspended before it had seen the new one
    await heir.adjust(plan)
    await soon(heir, plan, "! grep -qx more /sys/block/*/serial")
    await heir.stop(plan.id, grace_seconds=0)


async def test_an_agent_killed_at_any_command_of_a_change_is_followed_by_one_that_finishes_it(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan, nic: GuestNic, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = (await ready(driver, plan)).boot_id
    real = Qmp.execute
    grown = msgspec.structs.replace(
        plan,
        cpu=2.0,
        vcpus=2,
        memory_bytes=256 * MIB,
        disks=[plan.disks[0], data_disk(lab, "more", 80 * MIB)],
        nics=[nic],
    )
    for goal in (grown, plan):
        for step in range(1, 40):
            killer = Killer(step)
            monkeypatch.setattr(Qmp, "execute", lambda qmp, command, k=killer, **more: k(real, qmp, command, more))
            try:
                await driver.adjust(goal)
                break
            except ConnectionAbortedError:
                monkeypatch.setattr(Qmp, "execute", real)
                await driver.close()
                driver = lab.driver()
                await driver.recover()
        monkeypatch.setattr(Qmp, "execute", real)
        assert step > 4
        disks = " ".join(sorted(disk.serial for disk in goal.disks))
        await soon(driver, plan, listed(disks))
        await soon(driver, plan, f"[ $(cat /sys/class/net/*/address | grep -cx {nic.mac}) = {len(goal.nics)} ]")
    assert (await driver.inspect(plan.id)).boot_id == boot_id


async def test_a_guest_suspended_half_way_through_a_change_resumes_as_what_it_was_then(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan, nic: GuestNic, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot_id = (await ready(driver, plan)).boot_id
    grown = msgspec.structs.replace(plan, cpu=2.0, vcpus=2, disks=[*plan.disks, data_disk(lab, "more")], nics=[nic])
    real = Qmp.execute

    async def die(qmp: Qmp, command: str, **more: Any) -> Any:
        if command == "netdev_add":
            raise ConnectionAbortedError(command)
        return await real(qmp, command, **more)

    monkeypatch.setattr(Qmp, "execute", die)
    with pytest.raises(ConnectionAbortedError):
        await driver.adjust(grown)
    monkeypatch.setattr(Qmp, "execute", real)
    await driver.suspend(plan.id)
    assert (await ready(driver, plan)).boot_id == boot_id
    await soon(driver, plan, "grep -qx more /sys/block/*/serial")
    shape = (await driver.adjust(grown)).shape
    assert shape is not None and shape.nics == [nic.mac]
    await driver.adjust(plan)


@pytest.mark.long
async def test_what_only_a_restart_can_give_is_refused_by_name(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan
) -> None:
    await ready(driver, plan)
    with pytest.raises(InvalidInput) as refused:
        await driver.adjust(msgspec.structs.replace(plan, cpu=99.0, vcpus=99))
    assert (refused.value.token, refused.value.field) == ("restartNeeded", "spec.cpu")
    small = lab.plan("small", machine="microvm")
    await ready(driver, small)
    with pytest.raises(InvalidInput) as refused:
        await driver.adjust(msgspec.structs.replace(small, disks=[*small.disks, data_disk(lab, "more")]))
    assert refused.value.token == "restartNeeded"
    for guest in (small, plan):
        await driver.stop(guest.id, grace_seconds=0)
        await driver.remove(guest.id)
