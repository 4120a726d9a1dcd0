"""Snapshots of a guest that counts on two disks and in memory: what is restored is of one instant, and the original goes on."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.register_assert_rewrite(
    "tests.conformance.runtime_contract", "tests.conformance.runtime_snapshots", "snapshot_lab"
)

from snapshot_lab import Listener, SnapshotLab, begin_counting, lay_over, look, read_counters
from tests.conformance.runtime_contract import ready, run
from tests.conformance.runtime_snapshots import SnapshotPromises, until_over

from weft.contracts.driver.identity import Identity

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def lab(tiny: Path) -> Iterator[SnapshotLab]:
    lab = SnapshotLab(tiny)
    yield lab
    lab.close()


class TestQemuSnapshots(SnapshotPromises):
    pass


async def test_disks_are_kept_at_one_instant_and_the_guest_goes_on(lab: SnapshotLab, counter: bytes) -> None:
    plan, driver = lab.plan("counts", disks=2), lab.driver()
    await begin_counting(driver, plan, counter)
    now = plan
    for key in ("first", "second"):
        seen = await look(driver, plan)
        snapshot = lab.plan_snapshot(plan, key)
        facts = await driver.snapshots.take(plan.id, snapshot)
        assert (facts.phase, facts.switched, facts.consistency, facts.message) == ("done", True, "filesystem", "")
        assert 0 < facts.pause_ms < 5000 and facts.taken_at > 0
        assert await driver.snapshots.take(plan.id, snapshot) == facts, "again is the same"
        copy = msgspec.structs.replace(lab.plan(f"copy-{key}"), disks=lab.copy_disks(now, f"copy-{key}"))
        now = lay_over(now, snapshot)
        await run(driver, plan.id, "killall", "-STOP", "counter")  # it takes most of a processor while the copy boots
        await ready(driver, copy)
        first, second = await read_counters(driver, copy)
        assert first - second in (0, 1) and first >= seen
        await driver.stop(copy.id, grace_seconds=0)
        await run(driver, plan.id, "killall", "-CONT", "counter")
        await look(driver, plan, after=first + 1)
        await driver.snapshots.forget(plan.id, key)
    await driver.stop(plan.id, grace_seconds=0)
    await ready(driver, now)
    first, second = await read_counters(driver, now)
    assert first - second in (0, 1) and first > seen
    await driver.stop(plan.id, grace_seconds=0)


async def test_what_a_guest_trims_its_disk_gives_back(lab: SnapshotLab) -> None:
    plan, driver = lab.plan("trims"), lab.driver()
    await ready(driver, plan)
    disk = Path(plan.disks[0].path)
    fill = "dd if=/dev/urandom of=/big bs=1M count=24 2>/dev/null && sync"
    assert (await run(driver, plan.id, "sh", "-c", fill))[2] == 0
    full = disk.stat().st_blocks * 512
    assert (await run(driver, plan.id, "sh", "-c", "rm /big && sync"))[2] == 0
    assert disk.stat().st_blocks * 512 >= full - (1 << 20)
    trimmed = await driver.trim(plan.id)
    assert trimmed >= 24 << 20
    assert full - disk.stat().st_blocks * 512 >= 20 << 20
    await driver.stop(plan.id, grace_seconds=0)


@pytest.mark.long
async def test_memory_that_is_kept_goes_on_as_the_guest_that_it_was(lab: SnapshotLab, counter: bytes) -> None:
    plan, driver = lab.plan("remembers", disks=2), lab.driver()
    await begin_counting(driver, plan, counter)
    snapshot = lab.plan_snapshot(plan, "m", memory=True)
    facts = await driver.snapshots.take(plan.id, snapshot)
    assert facts.phase in ("saving", "done") and facts.consistency == "memory" and facts.message == ""
    facts = await until_over(driver, plan, "m")
    assert facts.phase == "done" and facts.memory_bytes == os.path.getsize(snapshot.memory)
    assert not Path(f"{snapshot.memory}.pending").exists()
    seen = await look(driver, plan)
    await look(driver, plan, after=seen + 200)
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    again = msgspec.structs.replace(plan, memory=snapshot.memory, disks=lab.copy_disks(plan, "again"))
    await driver.start(again)
    await ready(driver, again)
    now = await look(driver, again)
    assert now < seen + 200, "it goes on from where it was"
    await look(driver, again, after=now + 10)
    assert Path(snapshot.memory).exists()
    await driver.stop(plan.id, grace_seconds=0)


WHO = (
    "hostname; cat /etc/machine-id 2>/dev/null || echo none; cat /sys/class/net/eth0/address; "
    "head -c 16 /dev/urandom | hexdump -C; cat /sys/class/net/eth0/carrier"
)


@pytest.mark.long
async def test_two_copies_of_one_memory_are_three_machines(lab: SnapshotLab, counter: bytes) -> None:
    plan, driver = lab.plan_with_nic("origin", disks=2), lab.driver()
    await begin_counting(driver, plan, counter, rest_ms=20)
    snapshot = lab.plan_snapshot(plan, "m", memory=True)
    await driver.snapshots.take(plan.id, snapshot)
    assert (await until_over(driver, plan, "m")).phase == "done"
    seen, told = await look(driver, plan), [(await run(driver, plan.id, "sh", "-c", WHO))[0].decode().splitlines()]
    for name in ("twin-1", "twin-2"):
        identity = Identity(name, hashlib.md5(name.encode()).hexdigest())
        twin = msgspec.structs.replace(
            lab.plan_with_nic(name), memory=snapshot.memory, disks=lab.copy_disks(plan, name), identity=identity
        )
        with Listener(twin.nics[0].ifname) as listener:
            await driver.start(twin)
            await ready(driver, twin)
            assert await listener.hear_senders() == {twin.nics[0].mac}, "nothing came from the MAC of the original"
        told.append((await run(driver, twin.id, "sh", "-c", WHO))[0].decode().splitlines())
        assert told[-1][:3] == [name, identity.machine_id, twin.nics[0].mac] and told[-1][-1] == "1"
        clock = float((await run(driver, twin.id, "date", "+%s"))[0])
        assert abs(clock - time.time()) < 30
        now = await look(driver, twin)
        await look(driver, twin, after=now + 5)
    await look(driver, plan, after=seen + 1)
    for name in ("origin", "twin-1", "twin-2"):
        await driver.stop(lab.plan(name).id, grace_seconds=0)
    assert all(len(set(values)) == 3 for values in zip(*(words[:4] for words in told), strict=True)), told


@pytest.mark.long
async def test_a_copy_that_boots_is_another_machine_before_anything_of_it_starts(lab: SnapshotLab) -> None:
    plan, driver = lab.plan("booted"), lab.driver()
    await ready(driver, plan)
    await run(
        driver,
        plan.id,
        "sh",
        "-c",
        "mkdir -p /etc/ssh; for f in a.pub a; do echo old >/etc/ssh/ssh_host_$f; done; sync",
    )
    await run(
        driver,
        plan.id,
        "sh",
        "-c",
        "echo 00000000000000000000000000000000 >/etc/machine-id; echo old >/etc/hostname; sync",
    )
    await driver.snapshots.take(plan.id, lab.plan_snapshot(plan, "d"))
    identity = Identity("other", hashlib.md5(b"other").hexdigest())
    disks = lab.copy_disks(plan, "booted-copy")
    copy = msgspec.structs.replace(lab.plan("booted-copy"), disks=disks, identity=identity, hostname="other")
    await ready(driver, copy)
    read = "hostname; cat /etc/hostname /etc/machine-id; ls /etc/ssh"
    assert (await run(driver, copy.id, "sh", "-c", read))[0].decode().split() == ["other", "other", identity.machine_id]
    await run(driver, copy.id, "sh", "-c", "echo own >/etc/ssh/ssh_host_a; sync")
    await driver.stop(copy.id, grace_seconds=0)
    await ready(driver, copy)
    assert (await run(driver, copy.id, "cat", "/etc/ssh/ssh_host_a"))[0] == b"own\n", "it has become itself once"
    for one in (plan, copy):
        await driver.stop(one.id, grace_seconds=0)
